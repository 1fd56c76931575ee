//! Downloads from the model hub into the cache that huggingface_hub uses.
//!
//! Files come one by one, weights last, each checked against its hash; the
//! branch's entry in `refs` is written at the end. So what an interruption
//! leaves is either complete or recognized as incomplete.

mod address;
mod cache;
mod client;
mod failure;
mod ffi;
mod refusal;
mod transfer;
mod transport;
mod watch;

use std::cell::Cell;
use std::path::{Path, PathBuf};

use cache::Lock;
use client::Client;
use failure::Failure;
use transfer::Transfer;

/// The folders of one repository, and the files wanted from it.
struct Target {
    storage: PathBuf,
    locks: PathBuf,
    patterns: Vec<String>,
}

/// The files of one commit.
struct Listing {
    commit: String,
    files: Vec<String>,
}

/// Brings all wanted files; returns the snapshot's folder.
fn download(client: &Client, target: &Target) -> Result<PathBuf, Failure> {
    client.watch.begin(&client.settings.repository, 0, 0)?;
    let listing = client.retrying(|| 0, || list(client, target))?;
    let snapshot = target.storage.join("snapshots").join(&listing.commit);
    for folder in [&snapshot, &target.storage.join("blobs"), &target.locks] {
        cache::create_folder(folder)?;
    }
    for file in &listing.files {
        bring(client, target, &listing.commit, &snapshot, file)?;
    }
    let revision = &client.settings.revision;
    if *revision != listing.commit {
        cache::write_whole(&target.storage.join("refs").join(revision), &listing.commit)?;
    }
    Ok(snapshot)
}

/// The commit and the wanted files, weights last.
fn list(client: &Client, target: &Target) -> Result<Listing, Failure> {
    let settings = &client.settings;
    let revision = address::encode(&settings.revision, "");
    let path = format!("/api/models/{}/revision/{revision}", settings.repository);
    let text = client.read_text(&path)?;
    let json: serde_json::Value = serde_json::from_str(&text).map_err(|error| {
        Failure::Network(format!(
            "{}{path} answers with broken JSON ({error}): is HF_ENDPOINT a model hub?",
            settings.endpoint
        ))
    })?;
    let commit = json["sha"].as_str().unwrap_or_default().to_owned();
    let names = json["siblings"].as_array();
    let is_commit = commit.len() == 40
        && commit
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let (true, Some(names)) = (is_commit, names) else {
        return Err(Failure::Network(format!(
            "{}{path} names neither commit nor files: is HF_ENDPOINT a model hub?",
            settings.endpoint
        )));
    };
    let names: Vec<&str> = names
        .iter()
        .filter_map(|file| file["rfilename"].as_str())
        .collect();
    let mut files = wanted(&settings.repository, &names, &target.patterns)?;
    files.sort_by_key(|name| (name.ends_with(".safetensors"), name.clone()));
    files.dedup();
    Ok(Listing { commit, files })
}

fn wanted(repository: &str, names: &[&str], patterns: &[String]) -> Result<Vec<String>, Failure> {
    let mut files = Vec::new();
    for &name in names {
        if !patterns.iter().any(|pattern| cache::matches(pattern, name)) {
            continue;
        }
        if !cache::is_safe_name(name) {
            return Err(Failure::Network(format!(
                "{repository} holds a file with the forbidden name {name:?}: nothing is downloaded"
            )));
        }
        files.push(name.to_owned());
    }
    if !files.iter().any(|name| name.ends_with(".safetensors")) {
        let gguf: Vec<&str> = names
            .iter()
            .copied()
            .filter(|name| name.ends_with(".gguf"))
            .take(8)
            .collect();
        let others = if gguf.is_empty() {
            String::new()
        } else {
            format!(
                " but GGUF files ({}): download one and give its path",
                gguf.join(", ")
            )
        };
        return Err(Failure::Network(format!(
            "{repository} holds no model*.safetensors{others}"
        )));
    }
    Ok(files)
}

fn bring(
    client: &Client,
    target: &Target,
    commit: &str,
    snapshot: &Path,
    file: &str,
) -> Result<(), Failure> {
    let pointer = snapshot.join(file);
    if pointer.exists() {
        return Ok(());
    }
    let repository = &client.settings.repository;
    let path = format!(
        "/{repository}/resolve/{commit}/{}",
        address::encode(file, "/")
    );
    let reached = Cell::new(0);
    client.retrying(
        || reached.get(),
        || {
            let metadata = client.metadata(&path, file)?;
            let blob = target.storage.join("blobs").join(&metadata.etag);
            let lock = target.locks.join(format!("{}.lock", metadata.etag));
            client.watch.begin(file, 0, metadata.size)?;
            let _lock = Lock::acquire(&lock, &client.watch)?;
            if !blob.exists() {
                Transfer {
                    client,
                    metadata: &metadata,
                    file,
                    reached: &reached,
                }
                .run(&blob)?;
            }
            client.watch.begin(file, metadata.size, metadata.size)?;
            let depth = 2 + file.matches('/').count();
            cache::publish(&blob, &pointer, depth)
        },
    )
}
