//! Where a QEMU can be told what to do: the QMP sockets on its command line. Owns finding them; never connects.

use std::{
    ffi::OsStr,
    fs,
    io::Read,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::{cmdline, descriptor::ProcessId, options::Properties};

/// The QMP sockets of a process, in the order of its command line, as paths that can be opened from here: QEMU may see another file
/// system than we do, and take relative paths from its own working folder.
#[must_use]
pub fn qmp_sockets(process: ProcessId) -> Vec<PathBuf> {
    named(&command_line(process)).into_iter().map(|path| as_seen_by(process, &path)).collect()
}

/// Whether a process was told to start its guest paused (`-S`).
#[must_use]
pub fn starts_paused(process: ProcessId) -> bool {
    let text = command_line(process);
    cmdline::words(&text).any(|(option, _)| option == "S")
}

fn command_line(process: ProcessId) -> Vec<u8> {
    let mut text = Vec::new();
    let file = fs::File::open(format!("/proc/{}/cmdline", process.pid));
    let read = file.and_then(|file| file.take(cmdline::LIMIT as u64).read_to_end(&mut text));
    if read.is_err() {
        text.clear();
    }
    text
}

/// A path as the process sees it, to be opened from here.
#[must_use]
pub fn as_seen_by(process: ProcessId, path: &Path) -> PathBuf {
    let pid = process.pid;
    match path.strip_prefix("/") {
        Ok(absolute) => Path::new(&format!("/proc/{pid}/root")).join(absolute),
        Err(_) => Path::new(&format!("/proc/{pid}/cwd")).join(path),
    }
}

/// The sockets that a command line names.
fn named(text: &[u8]) -> Vec<PathBuf> {
    let path = |raw: &[u8]| PathBuf::from(OsStr::from_bytes(raw));
    let mut sockets = Vec::new();
    let mut devices = Vec::new();
    let mut monitors = Vec::new();
    for (option, argument) in cmdline::words(text) {
        let Some(argument) = argument else { continue };
        match option {
            "qmp" | "qmp-pretty" => {
                if let Some(rest) = argument.strip_prefix(b"unix:") {
                    let properties = Properties::parse(rest, "path");
                    sockets.extend(properties.get("path").map(path));
                } else if let Some(id) = argument.strip_prefix(b"chardev:") {
                    monitors.push(id.to_vec());
                }
            }
            "chardev" => {
                let device = Properties::parse(argument, "backend");
                if device.get("backend") == Some(b"socket")
                    && let (Some(id), Some(at)) = (device.get("id"), device.get("path"))
                {
                    devices.push((id.to_vec(), path(at)));
                }
            }
            "mon" => {
                let monitor = Properties::parse(argument, "chardev");
                if monitor.get("mode") == Some(b"control") {
                    monitors.extend(monitor.get("chardev").map(<[u8]>::to_vec));
                }
            }
            _ => {}
        }
    }
    let found = monitors.iter().filter_map(|id| devices.iter().find(|(device, _)| device == id));
    sockets.extend(found.map(|(_, path)| path.clone()));
    sockets.retain(|path| path.file_name().is_some());
    sockets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_found_however_they_are_written() {
        let line = b"qemu\0-S\0-qmp\0unix:/a/b.sock,server=on,wait=off\0-chardev\0socket,id=m,path=rel.sock,server=on\0\
            -mon\0chardev=m,mode=control\0-chardev\0socket,id=s,path=/serial\0-mon\0chardev=s,mode=readline\0\
            -qmp\0tcp:127.0.0.1:1\0-chardev\0socket,id=f,fd=3\0-mon\0chardev=f,mode=control\0-qmp";
        assert_eq!(named(line), [PathBuf::from("/a/b.sock"), PathBuf::from("rel.sock")]);
    }

    #[test]
    fn paths_are_those_of_the_process() {
        let process = ProcessId { pid: 7, start_time: 1 };
        assert_eq!(as_seen_by(process, Path::new("/x/y")), Path::new("/proc/7/root/x/y"));
        assert_eq!(as_seen_by(process, Path::new("y")), Path::new("/proc/7/cwd/y"));
    }
}
