//! Chat templates: compiled once, rendered for a conversation, within limits.

mod case;
mod chat;
mod environment;
mod filters;
mod format;
mod guards;
mod json;
mod methods;
mod namespaces;
mod python;
mod rewrite;
mod source;
mod tests;
mod time;
mod weight;

use std::ffi::c_char;
use std::fmt;
use std::io;

use minijinja::{Environment, ErrorKind, Value};

use crate::ffi::{guard, guarded, OwnedText, View};
pub use time::LocalTime;

const MAX_SOURCE_BYTES: usize = 1 << 20;
const MAX_OUTPUT_BYTES: usize = 64 << 20;
/// An instruction, or 64 bytes made, costs one; so does every 64th byte of the
/// input, which a template walks a few times.
const FUEL: u64 = 2_000_000;
const FUEL_PER_INPUT_BYTE: u64 = 2;
/// Template code can nest values about as deep as it has fuel, and they are
/// printed, compared and dropped recursively. Untouched stack costs nothing.
const STACK_BYTES_PER_FUEL: u64 = 96;
const STACK_BYTES: u64 = 64 << 20;

const NAME: &str = "chat_template";

pub struct Handle {
    environment: Environment<'static>,
    source: String,
}

/// `mlxlm_rust_chat`.
#[repr(C)]
pub struct CChat {
    messages_json: View,
    tools_json: View,
    variables_json: View,
    kwargs_json: View,
    add_generation_prompt: i32,
    continue_final_message: i32,
    now: LocalTime,
}

fn compile(source: &str) -> Result<Handle, String> {
    if source.len() > MAX_SOURCE_BYTES {
        return Err(format!(
            "has {} bytes, more than the limit of {MAX_SOURCE_BYTES}",
            source.len()
        ));
    }
    let source = source::prepare(source)?;
    let mut environment = environment::create();
    environment
        .add_template_owned(NAME, source.clone())
        .map_err(|error| describe(&error))?;
    Ok(Handle {
        environment,
        source,
    })
}

/// A writer that refuses to grow without end.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::Other,
                format!("more than {MAX_OUTPUT_BYTES} bytes of text"),
            ));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn render(handle: &Handle, chat: &chat::Chat, fuel: u64) -> Result<String, String> {
    let (context, tail) = chat.prepare(&handle.source)?;
    let mut environment = handle.environment.clone();
    environment.set_fuel(Some(fuel));
    let mut output = Bounded(Vec::new());
    let rendered = environment.get_template(NAME).and_then(|template| {
        template
            .render_captured_to(Value::from_pairs(context), &mut output)
            .map(|_| ())
    });
    namespaces::clear();
    rendered.map_err(|error| describe(&error))?;
    let text = String::from_utf8(output.0).map_err(|error| error.to_string())?;
    match tail {
        Some(tail) => tail.cut(text),
        None => Ok(text),
    }
}

/// What went wrong, in which line: the innermost cause that says something.
fn describe(error: &minijinja::Error) -> String {
    let mut innermost = error;
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    let mut foreign = None;
    while let Some(inner) = cause {
        match inner.downcast_ref::<minijinja::Error>() {
            Some(inner) => innermost = inner,
            None => foreign = Some(inner.to_string()),
        }
        cause = inner.source();
    }
    let line = error.line().or(innermost.line()).unwrap_or(0);
    if innermost.kind() == ErrorKind::OutOfFuel {
        return format!("takes too many steps (stopped in line {line})");
    }
    if let Some(message) = environment::raised(innermost) {
        return format!("refuses the conversation: {message}");
    }
    struct Text<'a>(&'a minijinja::Error);
    impl fmt::Display for Text<'_> {
        fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
            match self.0.detail() {
                Some(detail) => write!(f, "{}: {detail}", self.0.kind()),
                None => write!(f, "{}", self.0.kind()),
            }
        }
    }
    match foreign {
        Some(text) => format!("{}: {text} (line {line})", Text(innermost)),
        None => format!("{} (line {line})", Text(innermost)),
    }
}

/// Runs on a stack of its own, so that the caller's doesn't matter.
fn on_own_stack<T: Send>(
    bytes: u64,
    body: impl FnOnce() -> Result<T, String> + Send,
) -> Result<T, String> {
    let stack = usize::try_from(bytes).map_err(|error| error.to_string())?;
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .stack_size(stack)
            .spawn_scoped(scope, || guarded(body))
            .map_err(|error| format!("no thread to render in: {error}"))?
            .join()
            .unwrap_or_else(|_| Err("internal fault".to_owned()))
    })
}

/// # Safety
/// Pointers are valid; `compiled` may be written.
#[no_mangle]
pub unsafe extern "C" fn mlxlm_rust_template_compile(
    source: View,
    compiled: *mut *mut Handle,
) -> *mut c_char {
    guard(|| {
        let source = source.text("the source")?;
        let handle = on_own_stack(STACK_BYTES, || compile(source))?;
        *compiled = Box::into_raw(Box::new(handle));
        Ok(())
    })
}

/// # Safety
/// `compiled` is NULL or came from this crate, and is freed once.
#[no_mangle]
pub unsafe extern "C" fn mlxlm_rust_template_free(compiled: *mut Handle) {
    if !compiled.is_null() {
        drop(Box::from_raw(compiled));
    }
}

/// # Safety
/// Pointers are valid; `text` may be written.
#[no_mangle]
pub unsafe extern "C" fn mlxlm_rust_template_render(
    compiled: *const Handle,
    chat: *const CChat,
    text: *mut OwnedText,
) -> *mut c_char {
    guard(|| {
        let handle = &*compiled;
        let input = &*chat;
        let chat = chat::Chat {
            messages: input.messages_json.text("the conversation")?,
            tools: input.tools_json.text("the tools")?,
            variables: input.variables_json.text("the variables")?,
            kwargs: input.kwargs_json.text("the template's arguments")?,
            add_generation_prompt: input.add_generation_prompt != 0,
            continue_final_message: input.continue_final_message != 0,
            now: input.now,
        };
        let fuel = FUEL + FUEL_PER_INPUT_BYTE * chat.size() as u64;
        let stack = STACK_BYTES + STACK_BYTES_PER_FUEL * fuel;
        let rendered = on_own_stack(stack, || render(handle, &chat, fuel))?;
        text.write(rendered.into());
        Ok(())
    })
}
