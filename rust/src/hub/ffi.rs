//! The C interface of `include/mlxlm_hub.h`.

use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::client::{Client, Settings};
use super::failure::Failure;
use super::watch::{Report, Watch};
use super::Target;

const OK: c_int = 0;
const NETWORK: c_int = 1;
const NOT_FOUND: c_int = 2;
const FILE: c_int = 3;
const CANCELLED: c_int = 4;
const ARGUMENT: c_int = 5;

#[repr(C)]
pub struct Request {
    endpoint: *const c_char,
    token: *const c_char,
    repository: *const c_char,
    revision: *const c_char,
    storage: *const c_char,
    locks: *const c_char,
    patterns: *const *const c_char,
    num_patterns: usize,
    connect_timeout_ms: u32,
    stall_timeout_ms: u32,
    max_attempts: u32,
    first_backoff_ms: u32,
    longest_backoff_ms: u32,
    longest_retry_after_ms: u32,
    report: Option<Report>,
    context: *mut c_void,
}

/// # Safety
/// `request` and its pointers are as the header says; `text` may be written.
#[no_mangle]
pub unsafe extern "C" fn mlxlm_hub_download(
    request: *const Request,
    text: *mut *mut c_char,
) -> c_int {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let request = &*request;
        let watch = Arc::new(Watch::new(request.report, request.context));
        let client = Client::new(request.settings()?, watch)?;
        super::download(&client, &request.target()?)
    }));
    let (status, message) = match outcome {
        Ok(Ok(folder)) => (OK, folder.to_string_lossy().into_owned()),
        Ok(Err(failure)) => status_of(failure),
        Err(_) => (NETWORK, "internal fault in the download".to_owned()),
    };
    let bytes: Vec<u8> = message
        .into_bytes()
        .into_iter()
        .filter(|&byte| byte != 0)
        .collect();
    *text = CString::new(bytes).map_or(std::ptr::null_mut(), CString::into_raw);
    status
}

fn status_of(failure: Failure) -> (c_int, String) {
    match failure {
        Failure::Network(what) => (NETWORK, what),
        Failure::NotFound(what) => (NOT_FOUND, what),
        Failure::File(what) => (FILE, what),
        Failure::Argument(what) => (ARGUMENT, what),
        Failure::Cancelled => (CANCELLED, "the download was stopped".to_owned()),
        Failure::Transient(failure) => (NETWORK, failure.what),
    }
}

impl Request {
    /// # Safety
    /// As for `mlxlm_hub_download`.
    unsafe fn settings(&self) -> Result<Settings, Failure> {
        let milliseconds = |count: u32| Duration::from_millis(u64::from(count));
        Ok(Settings {
            endpoint: text(self.endpoint)?,
            token: if self.token.is_null() {
                None
            } else {
                Some(text(self.token)?)
            },
            repository: text(self.repository)?,
            revision: text(self.revision)?,
            connect_timeout: milliseconds(self.connect_timeout_ms),
            stall_timeout: milliseconds(self.stall_timeout_ms),
            max_attempts: self.max_attempts,
            first_backoff: milliseconds(self.first_backoff_ms),
            longest_backoff: milliseconds(self.longest_backoff_ms),
            longest_retry_after: milliseconds(self.longest_retry_after_ms),
        })
    }

    /// # Safety
    /// As for `mlxlm_hub_download`.
    unsafe fn target(&self) -> Result<Target, Failure> {
        let patterns = std::slice::from_raw_parts(self.patterns, self.num_patterns);
        Ok(Target {
            storage: PathBuf::from(text(self.storage)?),
            locks: PathBuf::from(text(self.locks)?),
            patterns: patterns
                .iter()
                .map(|&pattern| text(pattern))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// # Safety
/// `pointer` is a C string or NULL.
unsafe fn text(pointer: *const c_char) -> Result<String, Failure> {
    if pointer.is_null() {
        return Err(Failure::Argument(
            "a text of the request is missing".to_owned(),
        ));
    }
    CStr::from_ptr(pointer)
        .to_str()
        .map(str::to_owned)
        .map_err(|_| Failure::Argument("a name or folder is no UTF-8".to_owned()))
}
