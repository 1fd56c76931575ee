// Texts that transformers rendered from tests/data/chat_templates (see
// tests/data/make_chat_goldens.py), and what templates may not do.
#include "text/chat_template.h"

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "core/file.h"
#include "tests/support/test_data.h"

namespace mlxlm {
namespace {

using nlohmann::ordered_json;
using testing::HasSubstr;

// What the goldens were made at.
constexpr mlxlm_rust_time kTime = {2024, 7, 5, 14, 3, 9, 123456};
constexpr const char* kHello = R"([{"role": "user", "content": "Hello"}])";

const ordered_json& goldens() {
  static const ordered_json value =
      ordered_json::parse(read_file(test_data("chat_goldens.json")));
  return value;
}

std::string render(const std::string& source,
                   const std::string& messages,
                   const ChatTemplateOptions& options = {},
                   const std::string& variables = "{}") {
  ChatTemplates templates({{"default", source}});
  return templates.render(messages, options, variables, kTime);
}

// The rendered text, or null where the template fails.
ordered_json text_or_null(const std::string& source,
                          const std::string& messages,
                          const ChatTemplateOptions& options) {
  try {
    return render(source, messages, options, goldens()["variables"].dump());
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::chat_template);
    return nullptr;
  }
}

std::string error_of(const std::string& source,
                     const std::string& messages = kHello,
                     const ChatTemplateOptions& options = {}) {
  try {
    render(source, messages, options);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::chat_template);
    return error.what();
  }
  return "no error";
}

TEST(ChatTemplate, ConversationsRenderAsInPython) {
  for (const ordered_json& golden : goldens()["templates"]) {
    std::string file = golden["file"];
    std::string source = read_file(test_data("chat_templates/" + file));
    ChatTemplateOptions options;
    options.add_generation_prompt = golden["add_generation_prompt"];
    options.continue_final_message = golden["continue_final_message"];
    options.kwargs_json = golden["kwargs"].dump();
    if (golden["tools"].get<bool>()) {
      options.tools_json = goldens()["tools"].dump();
    }
    std::string conversation = golden["conversation"];
    EXPECT_EQ(
        text_or_null(
            source, goldens()["conversations"][conversation].dump(), options),
        golden["text"])
        << file << ", " << conversation;
  }
}

TEST(ChatTemplate, SnippetsRenderAsInPython) {
  const ordered_json& snippets = goldens()["snippets"];
  ChatTemplateOptions options;
  options.tools_json = snippets["tools"].dump();
  options.kwargs_json = snippets["kwargs"].dump();
  std::string messages = snippets["messages"].dump();
  for (const ordered_json& golden : snippets["cases"]) {
    EXPECT_EQ(text_or_null(golden["source"], messages, options), golden["text"])
        << golden["source"];
  }
}

TEST(ChatTemplate, EndlessWorkStops) {
  const char* loop =
      "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}"
      "{% endfor %}";
  EXPECT_THAT(error_of(loop), HasSubstr("too many steps"));
  EXPECT_THAT(error_of("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
              HasSubstr("recursion limit"));
  EXPECT_THAT(error_of("{% set n = namespace(x='aaaaaaaa') %}"
                       "{% for i in range(99) %}{% set n.x = n.x ~ n.x %}"
                       "{% endfor %}"),
              HasSubstr("too many steps"));
  EXPECT_THAT(error_of("{{ 'a' * 100000000000 }}"),
              HasSubstr("too many steps"));
  EXPECT_THAT(error_of("{{ range(1000000000)|list }}"), HasSubstr("range()"));
  EXPECT_THAT(error_of("{{ '%1000000000d' % 1 }}"), HasSubstr("too large"));
  EXPECT_THAT(error_of("{% include 'chat_template' %}"),
              HasSubstr("recursion limit"));
}

TEST(ChatTemplate, DeepValuesAndExpressionsAreRefused) {
  const std::string nested =
      "{% set n = namespace(x=[]) %}{% for i in range(50000) %}"
      "{% set n.x = [n.x] %}{% endfor %}";
  EXPECT_EQ(render(nested + "{{ n.x|length }}", kHello), "1");
  EXPECT_THAT(error_of(nested + "{{ n.x }}"), HasSubstr("nested too deep"));
  EXPECT_THAT(error_of(nested + "{{ n.x|tojson }}"),
              HasSubstr("nested too deep"));
  auto repeat = [](std::string text, int count) {
    std::string all;
    for (int i = 0; i < count; ++i) {
      all += text;
    }
    return all;
  };
  EXPECT_THAT(
      error_of("{{ " + repeat("(", 1000) + "1" + repeat(")", 1000) + " }}"),
      HasSubstr("recursion limits"));
  EXPECT_THAT(error_of("{{ " + repeat("not ", 100000) + "1 }}"),
              HasSubstr("10000 parts in line 1"));
  EXPECT_THAT(error_of(std::string(2 << 20, 'x')), HasSubstr("limit of"));
}

// A value that holds another one twice, which holds another one twice, and so
// on: a few parts, and a text without end.
TEST(ChatTemplate, ValuesCostAllThatTheyHold) {
  const std::string doubled =
      "{% set n = namespace(x=['a'], y=['a']) %}{% for i in range(60) %}"
      "{% set n.x = [n.x, n.x] %}{% set n.y = {'a': n.y, 'b': n.y}.values() %}"
      "{% set n.z = (n.z, n.z) %}{% endfor %}"
      "{% set n.w = namespace(x=n.x) %}";
  EXPECT_EQ(render(doubled + "{{ n.x|length }}", kHello), "2");
  for (const char* use : {
           // Operators.
           "{{ n.x ~ '' }}",
           "{{ {'a': {'b': 1}} ~ n.x }}",
           "{{ 1 if n.x == [n.x[0], n.x[1]] }}",
           "{{ 1 if 0 == 0 != n.x < [n.x[0]] }}",
           "{{ n.x in [n.x + []] }}",
           "{{ {n.x: 1} }}",
           "{{ {}[n.x] }}",
           "{{ '%s' % n.x }}",
           "{{ '%(a)s' % {'a': n.x} }}",
           // Tests.
           "{{ n.x is eq [n.x[0], n.x[1]] }}",
           "{{ n.x is in [[n.x[0], n.x[1]]] }}",
           "{{ [n.x]|select('==', [n.x[0], n.x[1]])|list }}",
           // Text.
           "{{ n.x }}",
           "{{ n.y }}",
           "{{ n.z }}",
           "{{ n.w ~ 1 }}",
           "{{ n.x|string }}",
           "{{ n.x|upper }}",
           "{{ n.x|title }}",
           "{{ n.x|tojson }}",
           "{{ n.x|pprint }}",
           "{{ n.x|safe }}",
           "{{ n.x|e }}",
           "{{ n.x|join }}",
           "{{ n.x|indent }}",
           "{{ n.x|trim }}",
           "{{ 'a'|trim(n.x) }}",
           "{{ 'a'|replace(n.x, 'b') }}",
           "{{ [n.x]|map('lower')|list }}",
           "{{ {'a': n.x}|urlencode }}",
           "{{ '{}'.format(n.x) }}",
           "{{ joiner(n.x) }}",
           "{{ raise_exception(n.x) }}",
           "{% macro f(a) %}{{ a ~ 'b' }}{% endmacro %}{{ f(n.x) }}",
           // Order.
           "{{ [n.x, n.x + []]|sort }}",
           "{{ [n.x, n.x + []]|unique|list }}",
           "{{ [n.x, n.x + []]|max }}",
           "{{ [{'a': n.x}, {'a': n.x + []}]|groupby('a') }}",
           "{{ {'a': n.x, 'b': n.x + []}|dictsort(by='value') }}",
           "{{ [n.x].index([n.x[0], n.x[1]]) }}",
           "{{ [n.x].count([n.x[0], n.x[1]]) }}",
           "{% for a in [n.x, n.x + []] %}{{ loop.changed(a) }}{% endfor %}",
       }) {
    EXPECT_THAT(error_of(doubled + use), HasSubstr("too many steps")) << use;
  }
  EXPECT_THAT(error_of(doubled + "{{ cycler(n.x) }}"), HasSubstr("cycler"));
  // Leaks if it isn't taken apart.
  EXPECT_THAT(error_of("{% set n = namespace() %}{% set n.n = [n] %}"
                       "{{ n ~ 1 }}"),
              HasSubstr("nested too deep"));
}

TEST(ChatTemplate, ListsHaveABoundedLength) {
  auto doubled = [](const std::string& start, const std::string& use) {
    return "{% set n = namespace(x=" + start + ") %}{% for i in range(60) %}" +
           "{% set n.x = n.x + n.x %}{% endfor %}" + use;
  };
  EXPECT_EQ(render(doubled("[]", "{% for y in n.x %}{% endfor %}.") +
                       "{{ [[]] * 100000 == [] }}{{ [] * 100000000 }}",
                   kHello),
            ".False[]");
  EXPECT_THAT(error_of(doubled("[1]", "")), HasSubstr("more than 100000"));
  EXPECT_THAT(error_of("{{ ([1] * 100001)|length }}"),
              HasSubstr("more than 100000"));
  EXPECT_THAT(
      error_of("{{ range(99999)|tojson(indent=64) }}"
               "{{ range(99999)|tojson(separators=('a' * 9999, '')) }}"),
      HasSubstr("too many steps"));
}

TEST(ChatTemplate, ErrorsSayWhatAndWhere) {
  EXPECT_THAT(error_of("\n{{ raise_exception('no tools here') }}"),
              HasSubstr("refuses the conversation: no tools here"));
  EXPECT_THAT(error_of("\n\n{% if %}"), HasSubstr("line 3"));
  EXPECT_THAT(error_of("{{ x|nofilter }}"), HasSubstr("nofilter"));
  EXPECT_THAT(error_of("x", "[]"), HasSubstr("the conversation is empty"));
  EXPECT_THAT(error_of("x", "{}"), HasSubstr("list of messages"));
  EXPECT_THAT(error_of("x", "[1]"), HasSubstr("message 0"));
  EXPECT_THAT(error_of("x", "[{"), HasSubstr("not JSON"));
  EXPECT_THAT(error_of("x", kHello, {.tools_json = "3"}), HasSubstr("tools"));
  EXPECT_THAT(error_of("x", kHello, {.kwargs_json = "[]"}),
              HasSubstr("JSON object"));
  EXPECT_THAT(error_of("x", kHello, {.continue_final_message = true}),
              HasSubstr("generation prompt"));
}

TEST(ChatTemplate, NamedTemplates) {
  ChatTemplates several({{"default", "plain"}, {"tool_use", "tools"}});
  EXPECT_EQ(several.render(kHello, {}, "{}", kTime), "plain");
  EXPECT_EQ(several.render(kHello, {.tools_json = "[{}]"}, "{}", kTime),
            "tools");
  EXPECT_EQ(several.render(kHello, {.tools_json = " null"}, "{}", kTime),
            "plain");
  EXPECT_EQ(several.only_source(), "");
  ChatTemplates none;
  EXPECT_THROW(none.render(kHello, {}, "{}", kTime), Error);
  ChatTemplates odd(std::map<std::string, std::string>{{"rag", "x"}});
  EXPECT_THROW(odd.render(kHello, {}, "{}", kTime), Error);
}

TEST(ChatTemplate, InvalidUtf8IsReplaced) {
  EXPECT_EQ(render("{{ messages[0].content }}",
                   "[{\"role\": \"user\", \"content\": \"a\xFFz\"}]"),
            "a\xEF\xBF\xBDz");
}

}  // namespace
}  // namespace mlxlm
