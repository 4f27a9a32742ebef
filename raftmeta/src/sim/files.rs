//! What [`crate::fs`] is under test: the machine's files, or simulated ones for paths of a simulated disk.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::disk::{self, Handle};

pub enum File {
    Machine(std::fs::File),
    Simulated(Handle),
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub struct Metadata(u64);

impl Metadata {
    pub fn len(&self) -> u64 {
        self.0
    }
}

impl File {
    pub fn open(path: impl AsRef<Path>) -> io::Result<File> {
        OpenOptions::new().read(true).open(path)
    }

    pub fn create(path: impl AsRef<Path>) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(true).open(path)
    }

    pub fn metadata(&self) -> io::Result<Metadata> {
        match self {
            File::Machine(file) => Ok(Metadata(file.metadata()?.len())),
            File::Simulated(file) => Ok(Metadata(file.len()?)),
        }
    }

    pub fn sync_all(&self) -> io::Result<()> {
        match self {
            File::Machine(file) => file.sync_all(),
            File::Simulated(file) => file.sync(),
        }
    }

    pub fn sync_data(&self) -> io::Result<()> {
        match self {
            File::Machine(file) => file.sync_data(),
            File::Simulated(file) => file.sync(),
        }
    }

    pub fn try_lock(&self) -> Result<(), std::fs::TryLockError> {
        match self {
            File::Machine(file) => file.try_lock(),
            File::Simulated(_) => Ok(()),
        }
    }
}

impl FileExt for File {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            File::Machine(file) => file.read_at(bytes, offset),
            File::Simulated(file) => file.read_at(bytes, offset),
        }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        match self {
            File::Machine(file) => file.write_at(bytes, offset),
            File::Simulated(file) => file.write_at(bytes, offset),
        }
    }
}

impl Read for &File {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            File::Machine(file) => (&mut &*file).read(bytes),
            File::Simulated(file) => file.read(bytes),
        }
    }
}

impl Read for File {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        (&mut &*self).read(bytes)
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            File::Machine(file) => file.write(bytes),
            File::Simulated(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Clone, Debug)]
pub struct OpenOptions {
    machine: std::fs::OpenOptions,
    create: bool,
    truncate: bool,
}

impl OpenOptions {
    pub fn new() -> OpenOptions {
        OpenOptions { machine: std::fs::OpenOptions::new(), create: false, truncate: false }
    }

    pub fn read(&mut self, yes: bool) -> &mut OpenOptions {
        self.machine.read(yes);
        self
    }

    pub fn write(&mut self, yes: bool) -> &mut OpenOptions {
        self.machine.write(yes);
        self
    }

    pub fn create(&mut self, yes: bool) -> &mut OpenOptions {
        self.machine.create(yes);
        self.create = yes;
        self
    }

    pub fn truncate(&mut self, yes: bool) -> &mut OpenOptions {
        self.machine.truncate(yes);
        self.truncate = yes;
        self
    }

    pub fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        match disk::of(path.as_ref()) {
            Some(disk) => disk.open(path.as_ref(), self.create, self.truncate).map(File::Simulated),
            None => self.machine.open(path).map(File::Machine),
        }
    }
}

/// An entry of a directory.
pub struct Entry(PathBuf);

impl Entry {
    pub fn path(&self) -> PathBuf {
        self.0.clone()
    }
}

pub fn read_dir(dir: impl AsRef<Path>) -> io::Result<impl Iterator<Item = io::Result<Entry>>> {
    let paths: Vec<io::Result<PathBuf>> = match disk::of(dir.as_ref()) {
        Some(disk) => disk.list(dir.as_ref())?.into_iter().map(Ok).collect(),
        None => std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect(),
    };
    Ok(paths.into_iter().map(|path| path.map(Entry)))
}

pub fn create_dir_all(dir: impl AsRef<Path>) -> io::Result<()> {
    match disk::of(dir.as_ref()) {
        Some(disk) => disk.make_dir(dir.as_ref()),
        None => std::fs::create_dir_all(dir),
    }
}

pub fn exists(path: impl AsRef<Path>) -> io::Result<bool> {
    match disk::of(path.as_ref()) {
        Some(disk) => Ok(disk.exists(path.as_ref())),
        None => std::fs::exists(path),
    }
}

pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    match disk::of(from.as_ref()) {
        Some(disk) => disk.rename(from.as_ref(), to.as_ref()),
        None => std::fs::rename(from, to),
    }
}

pub fn remove_file(path: impl AsRef<Path>) -> io::Result<()> {
    match disk::of(path.as_ref()) {
        Some(disk) => disk.remove(path.as_ref()),
        None => std::fs::remove_file(path),
    }
}
