//! The cache on disk: names that stay inside it, locks between processes,
//! checked content, links that appear whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{symlink, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::failure::Failure;
use super::watch::{Watch, TICK};

/// Whether a name from the hub stays below the folder it is put into.
pub fn is_safe_name(name: &str) -> bool {
    name.len() <= 1024
        && name
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
        && !name.chars().any(|c| c.is_control() || c == '\\')
}

/// `*` in the pattern stands for any text, slashes too; there is one at most.
pub fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, end)) => {
            name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
        }
    }
}

pub fn create_folder(path: &Path) -> Result<(), Failure> {
    fs::create_dir_all(path).map_err(|error| Failure::file("create the folder", path, &error))
}

/// Held by one download at a time, in this process and others.
pub struct Lock(#[allow(dead_code)] File);

impl Lock {
    pub fn acquire(path: &Path, watch: &Watch) -> Result<Lock, Failure> {
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o664)
                .open(path)
                .map_err(|error| Failure::file("open the lock", path, &error))?;
            // Safety: the descriptor is open.
            let locked =
                unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0;
            let error = io::Error::last_os_error();
            if locked {
                if is_still_there(&file, path) {
                    return Ok(Lock(file));
                }
            } else if error.kind() == io::ErrorKind::WouldBlock {
                watch.sleep(TICK)?;
            } else if error.kind() != io::ErrorKind::Interrupted {
                // No locks on this file system: two downloads may then do the
                // same work, and the checks of the content keep it right.
                return Ok(Lock(file));
            }
        }
    }
}

/// Others remove the lock's file when they are done: then it locks nothing.
fn is_still_there(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => ours.ino() == there.ino() && ours.dev() == there.dev(),
        _ => false,
    }
}

/// Whether the content has the hash that its ETag is: SHA-256 of large files,
/// git's SHA-1 of the others. Other ETags say nothing.
pub fn has_content(path: &Path, etag: &str, watch: &Watch) -> Result<bool, Failure> {
    if !etag.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(true);
    }
    let found = match etag.len() {
        64 => hash(path, Sha256::new(), watch)?,
        40 => {
            let size = file_size(path)?;
            let start = Sha1::new().chain_update(format!("blob {size}\0"));
            hash(path, start, watch)?
        }
        _ => return Ok(true),
    };
    Ok(found.eq_ignore_ascii_case(etag))
}

fn hash(path: &Path, mut hasher: impl Digest, watch: &Watch) -> Result<String, Failure> {
    let failed = |error: io::Error| Failure::file("read", path, &error);
    let mut file = File::open(path).map_err(failed)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        watch.tick()?;
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

pub fn file_size(path: &Path) -> Result<u64, Failure> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(Failure::file("read", path, &error)),
    }
}

/// Makes `pointer` a relative link to `blob`, or where links aren't to be had,
/// the blob itself.
pub fn publish(blob: &Path, pointer: &Path, depth: usize) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::file("write", pointer, &error);
    if let Some(folder) = pointer.parent() {
        create_folder(folder)?;
    }
    let name = blob.file_name().unwrap_or_default();
    let mut target: PathBuf = std::iter::repeat("..").take(depth).collect();
    target.push("blobs");
    target.push(name);
    let temporary = beside(pointer);
    let _ = fs::remove_file(&temporary);
    match symlink(&target, &temporary) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::StorageFull => return Err(failed(error)),
        Err(_) => fs::rename(blob, &temporary).map_err(failed)?,
    }
    fs::rename(&temporary, pointer).map_err(failed)
}

/// Writes a small file so that it appears whole.
pub fn write_whole(path: &Path, text: &str) -> Result<(), Failure> {
    if let Some(folder) = path.parent() {
        create_folder(folder)?;
    }
    let temporary = beside(path);
    let written = File::create(&temporary)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&temporary);
        Failure::file("write", path, &error)
    })
}

/// A name beside `path` that no other thread or process uses.
fn beside(path: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    name.push(format!(".{}-{count}.tmp", std::process::id()));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        for good in ["a", "a/b.json", "..a", "a..b/c"] {
            assert!(is_safe_name(good), "{good}");
        }
        for bad in [
            "", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a\\b", "a\nb", "a\0",
        ] {
            assert!(!is_safe_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_star_is_any_text() {
        assert!(matches("*.json", "a/b.json"));
        assert!(matches("model*.safetensors", "model.safetensors"));
        assert!(!matches("model*.safetensors", "model.safetensor"));
        assert!(!matches("aba*ba", "aba"));
        assert!(matches("tokenizer.model", "tokenizer.model"));
    }
}
