//! What every exported function needs: errors as text, panics caught, memory
//! handed over.

use std::ffi::{c_char, CString};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Once;

/// Text that belongs to the caller.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct View {
    data: *const u8,
    size: usize,
}

impl View {
    /// # Safety
    /// `data` is valid for `size` bytes while the result is used.
    pub unsafe fn bytes<'a>(self) -> &'a [u8] {
        slice(self.data, self.size)
    }

    /// # Safety
    /// As for `bytes`.
    pub unsafe fn text<'a>(self, what: &str) -> Result<&'a str, String> {
        std::str::from_utf8(self.bytes()).map_err(|_| format!("{what} is not valid UTF-8"))
    }
}

/// A slice from C; NULL is an empty one.
///
/// # Safety
/// `data` is NULL or valid for `size` elements while the result is used.
pub unsafe fn slice<'a, T>(data: *const T, size: usize) -> &'a [T] {
    if data.is_null() || size == 0 {
        &[]
    } else {
        std::slice::from_raw_parts(data, size)
    }
}

/// An array handed to the caller.
#[repr(C)]
pub struct Owned<T> {
    data: *mut T,
    size: usize,
}

pub type OwnedText = Owned<u8>;
pub type OwnedIds = Owned<u32>;

impl<T> Owned<T> {
    pub fn none() -> Self {
        Owned {
            data: std::ptr::null_mut(),
            size: 0,
        }
    }

    unsafe fn free(self) {
        if !self.data.is_null() {
            drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(
                self.data, self.size,
            )));
        }
    }
}

impl<T> From<Vec<T>> for Owned<T> {
    fn from(values: Vec<T>) -> Self {
        let size = values.len();
        let data = Box::into_raw(values.into_boxed_slice()).cast::<T>();
        Owned { data, size }
    }
}

impl From<String> for OwnedText {
    fn from(text: String) -> Self {
        text.into_bytes().into()
    }
}

/// Runs `body`; NULL on success, else the message as a C string.
pub fn guard(body: impl FnOnce() -> Result<(), String>) -> *mut c_char {
    match guarded(body) {
        Ok(()) => std::ptr::null_mut(),
        Err(message) => into_c_text(&message),
    }
}

/// Runs `body`; a panic becomes an error.
pub fn guarded<T>(body: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    silence_panics();
    catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|panic| Err(format!("internal fault: {}", panic_text(&*panic))))
}

/// Panics become error messages; nothing is printed. The hook is this static
/// library's own.
fn silence_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|_| {})));
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown")
}

fn into_c_text(text: &str) -> *mut c_char {
    let bytes: Vec<u8> = text.bytes().filter(|&byte| byte != 0).collect();
    CString::new(bytes).map_or(std::ptr::null_mut(), CString::into_raw)
}

/// # Safety
/// `text` is NULL or came from this crate, and is freed once.
#[no_mangle]
pub unsafe extern "C" fn mlxlm_rust_free_text(text: *mut c_char) {
    if !text.is_null() {
        drop(CString::from_raw(text));
    }
}

/// # Safety
/// `text` came from this crate, and is freed once.
#[no_mangle]
pub unsafe extern "C" fn mlxlm_rust_free_string(text: OwnedText) {
    text.free();
}

/// # Safety
/// `ids` came from this crate, and are freed once.
#[no_mangle]
pub unsafe extern "C" fn mlxlm_rust_free_ids(ids: OwnedIds) {
    ids.free();
}
