//! A conversation as transformers hands it to the template.

use minijinja::Value;
use serde_json::{Map, Value as Json};

use super::{json, python};
use super::time::LocalTime;

pub struct Chat<'a> {
    pub messages: &'a str,
    pub tools: &'a str,
    pub variables: &'a str,
    pub kwargs: &'a str,
    pub add_generation_prompt: bool,
    pub continue_final_message: bool,
    pub now: LocalTime,
}

/// Marks where the final message ends in the rendered text.
const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Names a message's reasoning goes by; templates read the first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// The final message, whose end the text is cut at.
pub struct Tail {
    message: String,
}

impl Chat<'_> {
    pub fn size(&self) -> usize {
        self.messages.len() + self.tools.len() + self.variables.len() + self.kwargs.len()
    }

    /// The template's variables, and where to cut its text.
    pub fn prepare(&self, source: &str) -> Result<(Vec<(String, Value)>, Option<Tail>), String> {
        if self.continue_final_message && self.add_generation_prompt {
            return Err(
                "a final message can't be continued after a generation prompt was added".to_owned(),
            );
        }
        let mut messages = self.parse_messages()?;
        let tail = match self.continue_final_message {
            true => Some(Tail::mark(&mut messages, source)?),
            false => None,
        };
        let tools = match self.tools {
            "" => Json::Null,
            text => parse_tools(text)?,
        };
        let mut context: Vec<(String, Value)> = vec![
            ("strftime_now".to_owned(), self.now.function()),
            ("messages".to_owned(), messages.iter().map(json::object_to_value).collect()),
            ("tools".to_owned(), json::to_value(&tools)),
            ("documents".to_owned(), Value::from(())),
            (
                "add_generation_prompt".to_owned(),
                Value::from(self.add_generation_prompt),
            ),
        ];
        for (text, what) in [
            (self.variables, "the variables"),
            (self.kwargs, "the template's arguments"),
        ] {
            for (name, value) in parse_object(text, what)? {
                context.push((name, json::to_value(&value)));
            }
        }
        Ok((context, tail))
    }

    fn parse_messages(&self) -> Result<Vec<Map<String, Json>>, String> {
        let messages: Json = serde_json::from_str(self.messages)
            .map_err(|error| format!("the conversation is not JSON: {error}"))?;
        let Json::Array(messages) = messages else {
            return Err("the conversation must be a list of messages".to_owned());
        };
        if messages.is_empty() {
            return Err("the conversation is empty".to_owned());
        }
        messages
            .into_iter()
            .enumerate()
            .map(|(index, message)| match message {
                Json::Object(message) => Ok(normalized(message)),
                _ => Err(format!("message {index} must be an object")),
            })
            .collect()
    }
}

fn parse_tools(text: &str) -> Result<Json, String> {
    let tools: Json =
        serde_json::from_str(text).map_err(|error| format!("the tools are not JSON: {error}"))?;
    match &tools {
        Json::Null => Ok(tools),
        Json::Array(list) if list.iter().all(Json::is_object) => Ok(tools),
        _ => Err("the tools must be a list of objects".to_owned()),
    }
}

fn parse_object(text: &str, what: &str) -> Result<Map<String, Json>, String> {
    if text.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_str(text).map_err(|error| format!("{what} must be a JSON object: {error}"))
}

/// Fields that are null count as missing; reasoning is there under the names
/// that templates read.
fn normalized(message: Map<String, Json>) -> Map<String, Json> {
    let mut message: Map<String, Json> = message
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .collect();
    let reasoning = REASONING.iter().find_map(|name| message.get(*name)).cloned();
    if let Some(reasoning) = reasoning {
        let mut aliased = Map::new();
        aliased.insert("thinking".to_owned(), reasoning.clone());
        aliased.extend(message);
        aliased.insert("reasoning_content".to_owned(), reasoning);
        message = aliased;
    }
    message
}

impl Tail {
    fn mark(messages: &mut [Map<String, Json>], source: &str) -> Result<Tail, String> {
        let content = messages
            .last_mut()
            .and_then(|message| message.get_mut("content"))
            .ok_or("the final message has no \"content\" to continue")?;
        if !source.contains("content") {
            return Err("doesn't read the \"content\" that is to be continued".to_owned());
        }
        let text = match content {
            Json::Array(blocks) => blocks
                .iter_mut()
                .rev()
                .find_map(|block| block.get_mut("text")),
            other => Some(other),
        };
        let Some(Json::String(text)) = text else {
            return Err("the final message has no text to continue".to_owned());
        };
        let message = text.clone();
        text.push_str(TAG);
        Ok(Tail { message })
    }

    pub fn cut(&self, mut text: String) -> Result<String, String> {
        let strip = |text: &str| text.trim_matches(python::is_space).to_owned();
        let tag = strip(TAG);
        let place = text
            .rfind(&tag)
            .filter(|_| text.contains(&strip(&self.message)))
            .ok_or("changes the final message, so that it can't be continued")?;
        let kept_spaces = text[place..].starts_with(TAG);
        text.truncate(place);
        if !kept_spaces {
            text.truncate(text.trim_end_matches(python::is_space).len());
        }
        Ok(text)
    }
}
