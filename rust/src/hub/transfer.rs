//! One file's content, from where the last try ended to the checked blob.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use ureq::http::Response;
use ureq::Body;

use super::cache;
use super::client::{number_of, text_of, Client, Metadata};
use super::failure::Failure;

pub struct Transfer<'a> {
    pub client: &'a Client,
    pub metadata: &'a Metadata,
    pub file: &'a str,
    /// The size that the best of the tries has reached.
    pub reached: &'a Cell<u64>,
}

impl Transfer<'_> {
    /// Makes the blob; what has arrived when it fails is left beside it.
    pub fn run(&self, blob: &Path) -> Result<(), Failure> {
        let Metadata { etag, size, .. } = self.metadata;
        let partial = blob.with_file_name(format!("{etag}.incomplete"));
        let received = self.receive(&partial).and_then(|()| {
            if cache::has_content(&partial, etag, &self.client.watch)? {
                return Ok(());
            }
            Err(Failure::corrupt(format!(
                "{} arrived with other content ({size} bytes) than its hash {etag} says: the \
                 server, a proxy or the disk changes it",
                self.file
            )))
        });
        if matches!(&received, Err(Failure::Transient(failure)) if failure.corrupt) {
            let _ = fs::remove_file(&partial);
        }
        received?;
        fs::rename(&partial, blob).map_err(|error| Failure::file("write", blob, &error))
    }

    fn receive(&self, partial: &Path) -> Result<(), Failure> {
        let size = self.metadata.size;
        let failed = |error: io::Error| Failure::file("write", partial, &error);
        let mut output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(partial)
            .map_err(failed)?;
        let mut offset = output.metadata().map_err(failed)?.len();
        if offset > size {
            output.set_len(0).map_err(failed)?;
            offset = 0;
        }
        if offset == size {
            return Ok(());
        }
        let response = self.client.content(&self.metadata.address, offset)?;
        let start = self.starting_point(&response, offset)?;
        output.set_len(start).map_err(failed)?;
        let end = self.copy(response, &mut output, partial, start)?;
        output.sync_all().map_err(failed)?;
        if end < size {
            return Err(Failure::transient(format!(
                "the connection was cut after {end} of {size} bytes of {}",
                self.file
            )));
        }
        Ok(())
    }

    /// Where the answer's content begins: at the offset asked for, or at 0.
    fn starting_point(&self, response: &Response<Body>, offset: u64) -> Result<u64, Failure> {
        let (file, status) = (self.file, response.status().as_u16());
        let start = match status {
            206 => {
                let range = text_of(response.headers(), "content-range").unwrap_or_default();
                let start = range
                    .strip_prefix("bytes ")
                    .and_then(|range| range.split_once('-'))
                    .and_then(|(start, _)| start.parse().ok());
                if start != Some(offset) {
                    return Err(Failure::corrupt(format!(
                        "the server sends another part of {file} than was asked for"
                    )));
                }
                offset
            }
            416 => {
                return Err(Failure::corrupt(format!(
                    "the server has no more of {file} than {offset} bytes (416)"
                )));
            }
            // Addresses of the storage are signed for a while only: ask anew.
            401 | 403 | 404 if !self.client.is_hub(&self.metadata.address) => {
                return Err(Failure::transient(format!(
                    "the storage behind the hub refuses {file} ({status})"
                )));
            }
            _ => {
                self.client.check_status(response, Some(file))?;
                0
            }
        };
        let size = self.metadata.size;
        match number_of(response.headers(), "content-length") {
            Some(length) if start.checked_add(length) != Some(size) => {
                Err(Failure::corrupt(format!(
                    "the server sends {length} bytes of {file} instead of {}",
                    size.saturating_sub(start)
                )))
            }
            _ => Ok(start),
        }
    }

    /// Returns the size reached: the file's, or less if the connection ended.
    fn copy(
        &self,
        mut response: Response<Body>,
        output: &mut File,
        partial: &Path,
        start: u64,
    ) -> Result<u64, Failure> {
        let Metadata { address, size, .. } = self.metadata;
        let watch = &self.client.watch;
        watch.begin(self.file, start, *size)?;
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 17];
        let mut done = start;
        loop {
            let count = match body.read(&mut buffer) {
                Ok(0) => return Ok(done),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let failure = self.client.transport_failure(address, error.into());
                    return Err(self.cut_at(done, failure));
                }
            };
            if count as u64 > size - done {
                return Err(Failure::corrupt(format!(
                    "the server sends more than the {size} bytes that {} has",
                    self.file
                )));
            }
            output.write_all(&buffer[..count]).map_err(|error| {
                Failure::File(format!(
                    "cannot write {}: {error} ({done} of {size} bytes of {} have arrived and are \
                     kept)",
                    partial.display(),
                    self.file
                ))
            })?;
            done += count as u64;
            self.reached.set(self.reached.get().max(done));
            watch.advance(done)?;
        }
    }

    /// Adds to a connection's failure how far the file has come.
    fn cut_at(&self, done: u64, failure: Failure) -> Failure {
        match failure {
            Failure::Transient(mut failure) => {
                failure.what = format!(
                    "{} after {done} of {} bytes of {}",
                    failure.what, self.metadata.size, self.file
                );
                Failure::Transient(failure)
            }
            other => other,
        }
    }
}
