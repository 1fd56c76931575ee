"""Renders tests/data/chat_templates with transformers into chat_goldens.json.

Run with the reference's Python; one of transformers' own functions is replaced
so that the time stands still.
"""
import datetime
import json
import pathlib

import transformers.utils.chat_template_utils as utils

HERE = pathlib.Path(__file__).parent
TIME = datetime.datetime(2024, 7, 5, 14, 3, 9, 123456)


class StandingTime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return TIME


utils.datetime = StandingTime

TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "Says the wéather <now>",
        "parameters": {"type": "object", "required": ["city"], "properties": {
            "city": {"type": "string", "description": "Where"},
            "unit": {"type": "string", "enum": ["°C", "°F"]},
            "days": {"type": "array", "items": {"type": "integer"}},
            "at": {"type": "object", "properties": {"lat": {"type": "number"}}}}}}},
    {"type": "function", "function": {
        "name": "noop", "description": "Nothing",
        "parameters": {"type": "object", "properties": {}, "required": []}}},
]
CONVERSATIONS = {
    "one": [{"role": "user", "content": "Hello"}],
    "system": [{"role": "system", "content": " Be kind.\n"},
               {"role": "user", "content": "  Why?\n"}],
    "turns": [{"role": "user", "content": "Hi"},
              {"role": "assistant", "content": "Hello!", "tool_calls": None},
              {"role": "user", "content": "日本語 🎉 é e\u0301 \"q\" 'a' <b> \\n"},
              {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes"},
              {"role": "user", "content": "{{ 1 }} {% if %} <|im_end|>"}],
    "reasoning": [{"role": "user", "content": "2+2"},
                  {"role": "assistant", "content": "4", "thinking": "sum"},
                  {"role": "user", "content": "sure?"},
                  {"role": "assistant", "content": "yes", "reasoning_content": "again"}],
    "tools": [{"role": "system", "content": "S"},
              {"role": "user", "content": "Weather?"},
              {"role": "assistant", "content": "", "tool_calls": [
                  {"type": "function", "function": {"name": "get_weather", "arguments": {
                      "city": "Köln", "days": [1, 2.0, None, True]}}}]},
              {"role": "tool", "content": "{\"t\": 20}"},
              {"role": "tool", "content": "ok"},
              {"role": "user", "content": "Thanks"}],
    "parts": [{"role": "user", "content": [
        {"type": "image"}, {"type": "text", "text": " What is this? "}]}],
}
SNIPPETS = [
    {"role": "system", "content": "Be  kind. "},
    {"role": "user", "content": "Héllo <b> 'q' \"d\" 世界\n line2", "n": 3, "f": 1.5,
     "none": None, "list": [1, 2.0, "x", None, True, [], {}],
     "d": {"b": 1, "a": [1, {"z": "é"}], "items": 5}},
    {"role": "assistant", "content": "", "tool_calls": [
        {"function": {"name": "f", "arguments": {"x": 1, "y": [1.0, "s"]}}}]},
]
SNIPPET_TOOLS = [{"type": "function", "function": {
    "name": "get", "description": "Gets", "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "enum": ["a", "b"]},
        "arr": {"type": "array", "items": {"type": "integer"}}}, "required": ["city"]}}}]
SNIPPET_KWARGS = {
    "enable_thinking": True, "num": 7, "neg": -7, "flt": 2.5, "big": 1e20, "small": 1.5e-7,
    "lst": [3, 1, 2], "strs": ["b", "A", "c", "a"], "dct": {"k2": 2, "k1": 1, "K3": 3},
    "objs": [{"n": "x", "v": 2}, {"n": "y", "v": 1}, {"n": "x", "v": 3}], "empty": "",
    "nul": None, "s": "hello world", "nested": [[1, 2], [3]], "ws": "  a b \n"}
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}


def render(source, case):
    """The text, or None where the template fails."""
    try:
        messages = utils._normalize_chat_messages(case["messages"])
        texts, _ = utils.render_jinja_template(
            [messages], tools=case["tools"], chat_template=source,
            add_generation_prompt=case["add_generation_prompt"],
            continue_final_message=case["continue_final_message"],
            **{**VARIABLES, **case["kwargs"]})
        return texts[0]
    except Exception:
        return None


def cases():
    def case(name, **changes):
        return {"conversation": name, "tools": None, "kwargs": {}, "add_generation_prompt": True,
                "continue_final_message": False, **changes}
    for name in CONVERSATIONS:
        yield case(name)
        yield case(name, add_generation_prompt=False)
    for name in ["one", "tools", "reasoning"]:
        yield case(name, tools=TOOLS, kwargs={"enable_thinking": False})
    yield case("turns", add_generation_prompt=False, continue_final_message=True)
    yield case("reasoning", add_generation_prompt=False, continue_final_message=True)
    yield case("one", kwargs={"documents": [{"title": "T", "text": "x"}], "date_string": "now"})


def main():
    goldens = {"variables": VARIABLES, "tools": TOOLS, "conversations": CONVERSATIONS,
               "templates": [], "snippets": {
                   "messages": SNIPPETS, "tools": SNIPPET_TOOLS, "kwargs": SNIPPET_KWARGS,
                   "cases": []}}
    for path in sorted((HERE / "chat_templates").glob("*.jinja")):
        for case in cases():
            full = {**case, "messages": CONVERSATIONS[case["conversation"]]}
            text = render(path.read_text(encoding="utf-8"), full)
            goldens["templates"].append({"file": path.name, **case, "text": text,
                                         "tools": case["tools"] is not None})
    for line in (HERE / "chat_templates/snippets.txt").read_text(encoding="utf-8").splitlines():
        source = line.replace("\\N", "\n")
        text = render(source, {
            "messages": SNIPPETS, "tools": SNIPPET_TOOLS, "kwargs": SNIPPET_KWARGS,
            "add_generation_prompt": True, "continue_final_message": False})
        goldens["snippets"]["cases"].append({"source": source, "text": text})
    (HERE / "chat_goldens.json").write_text(
        json.dumps(goldens, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
