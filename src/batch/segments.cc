// Prompts in segments.
#include "batch/row.h"

namespace mlxlm {

std::vector<SegmentEnd> join_segments(BatchRequest& request) {
  std::vector<SegmentEnd> ends;
  if (request.segments.empty()) return ends;
  if (!request.prompt.empty() || request.options.input_embeddings) {
    throw Error(ErrorKind::argument,
                "a request has segments besides a prompt or input embeddings; "
                "leave one of them out");
  }
  auto& prompt = request.prompt;
  for (std::size_t i = 0; i < request.segments.size(); ++i) {
    const auto& segment = request.segments[i];
    if (segment.empty()) continue;
    prompt.insert(prompt.end(), segment.begin(), segment.end());
    ends.push_back({static_cast<int>(i), static_cast<int>(prompt.size())});
  }
  request.segments.clear();
  if (ends.empty()) return ends;
  // The last token is read with the first draw.
  --ends.back().position;
  const int before = ends.size() > 1 ? ends[ends.size() - 2].position : 0;
  if (ends.back().position == before) ends.pop_back();
  for (const SegmentEnd& end : ends) {
    request.options.prompt_checkpoints.push_back(end.position);
  }
  return ends;
}

}  // namespace mlxlm
