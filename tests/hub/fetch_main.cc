// hub_fetch ENDPOINT CACHE REPOSITORY: a process of its own that downloads.
#include <iostream>

#include "load/hub.h"

int main(int count, char** arguments) {
  if (count != 4) {
    return 2;
  }
  mlxlm::HubOptions options;
  options.endpoint = arguments[1];
  options.cache_folder = arguments[2];
  try {
    auto id = mlxlm::parse_hub_id(arguments[3]);
    std::cout << mlxlm::fetch_snapshot(id.value(), options, {}).string()
              << '\n';
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
