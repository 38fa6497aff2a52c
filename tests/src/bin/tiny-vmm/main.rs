//! A virtual machine monitor of a few hundred lines, driven by lines on stdin, so that a test can make one KVM guest
//! write exactly the pages it names. Owns the command line and the protocol; the machine itself is in [`machine`].
//!
//! It is a process of its own because that is what memdexd looks at, and because a test can kill it.
//!
//! ```text
//! tiny-vmm [--mib 16] [--ram memfd|anon|hugetlb|PATH] [--log none|bitmap|ring] [--uid UID] [--seccomp kill]
//!
//! write FIRST COUNT SEED      the guest writes COUNT pages from guest page FIRST; page i holds pattern SEED+i
//! zero FIRST COUNT            the guest writes zeros over what `write` left
//! poke FIRST COUNT SEED       as `write`, by the VMM itself, as device emulation does
//! fill FIRST COUNT            read(2) of random bytes into the pages: the kernel writes
//! loop RATE FIRST COUNT       the guest writes RATE random pages a second out of the range until `pause`
//! pause | resume              stop and go on with the loop; nothing is written after the answer to `pause`
//! slot add ID PAGE PAGES      plugs memory in at guest page PAGE
//! slot del ID                 takes it out and unmaps it
//! slot move ID PAGE           moves it to another guest page
//! peek FIRST COUNT            the VMM reads pages
//! collapse ID PAGE            fills a hole by making a huge page of what is around it
//! punch ID PAGE COUNT         fallocate(PUNCH_HOLE) in the slot's RAM file
//! madvise ID PAGE COUNT remove|dontneed|populate
//! mlock ID PAGE COUNT
//! replace ID PAGE COUNT       fresh memory in the place of a part of anonymous RAM
//! remap ID [other]            fresh memory over the slot's; if it is a file, the same once more, or another one
//! relocate ID                 moves the slot's memory to other addresses of the VMM (mremap)
//! truncate ID PAGES           ftruncate of the slot's RAM file under the running VM
//! disk open PATH | close      opens a file for direct I/O (O_DIRECT), and closes it
//! disk pread|aio PAGE COUNT   submits a read of the file's start into guest pages, which goes on in the background
//! disk wait                   waits for all that was submitted; `ok BYTES` if all went well
//! uring open PATH | close     an io_uring that reads the file
//! uring read|fixed PAGE COUNT reads the file's start into guest pages: a plain request, or into the registered buffer
//! uring register PAGE COUNT | unregister
//! fork                        a child of the VMM, which does as it is told: `child poke PAGE COUNT SEED`, `child end`
//! dirty                       pages KVM's own dirty log or ring has reported so far
//! layout                      `slot ID PAGE PAGES ADDRESS` for each slot, `;` between them
//! quit
//! ```
//!
//! tiny-vmm --write-to PATH        no VM: a process that maps a RAM file; `map`, `poke PAGE COUNT SEED`, `unmap`
//! The first line out is `ready`; then one line for each command: `ok …` or `error …`.

mod child;
mod disk;
mod guest;
mod machine;
mod ram;
mod ring;
mod seccomp;
mod uring;
mod writer;

use std::io::{BufRead, Write};

use disk::How;
use machine::{Log, Machine, Options};
use ram::{Advise, RamKind};

type Result<T> = std::result::Result<T, String>;

fn main() {
    if let Err(error) = run() {
        eprintln!("tiny-vmm: {error}");
        std::process::exit(1);
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [option, path] = &arguments[..]
        && option == "--write-to"
    {
        return writer::run(path);
    }
    let options = parse_options(arguments.into_iter())?;
    let machine = Machine::new(&options)?;
    if options.seccomp {
        seccomp::forbid_userfaultfd()?;
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready").map_err(|e| e.to_string())?;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| e.to_string())?;
        let words: Vec<&str> = line.split_whitespace().collect();
        if words == ["quit"] {
            break;
        }
        let answer = match execute(&machine, &words) {
            Ok(text) => format!("ok {text}"),
            Err(error) => format!("error {error}"),
        };
        writeln!(out, "{answer}").map_err(|e| e.to_string())?;
    }
    machine.stop_loop();
    Ok(())
}

fn parse_options(mut words: impl Iterator<Item = String>) -> Result<Options> {
    let mut options =
        Options { pages: 16 << 8, ram: RamKind::Memfd, log: Log::None, uid: None, seccomp: false };
    while let Some(option) = words.next() {
        let value = words.next().ok_or_else(|| format!("{option} wants a value"))?;
        match option.as_str() {
            "--mib" => options.pages = number(&value)? << 8,
            "--uid" => options.uid = Some(number(&value)? as u32),
            "--seccomp" => options.seccomp = value == "kill",
            "--ram" => {
                options.ram = match value.as_str() {
                    "memfd" => RamKind::Memfd,
                    "anon" => RamKind::Anonymous,
                    "hugetlb" => RamKind::Hugetlb,
                    path => RamKind::File(path.into()),
                }
            }
            "--log" => {
                options.log = match value.as_str() {
                    "none" => Log::None,
                    "bitmap" => Log::Bitmap,
                    "ring" => Log::Ring,
                    other => return Err(format!("--log {other} is not none, bitmap or ring")),
                }
            }
            // For the test of hostile command lines: whatever a real VMM might be given is taken and ignored.
            "-name" | "--name" => {}
            other => return Err(format!("unknown option {other}")),
        }
    }
    Ok(options)
}

fn execute(machine: &Machine, words: &[&str]) -> Result<String> {
    match words {
        ["write", first, count, seed] => {
            machine.guest_write(number(first)?, number(count)?, number(seed)? as u32)
        }
        ["zero", first, count] => machine.guest_zero(number(first)?, number(count)?),
        ["poke", first, count, seed] => machine.poke(number(first)?, number(count)?, number(seed)? as u32),
        ["peek", first, count] => machine.peek(number(first)?, number(count)?),
        ["scatter", first, count] => machine.scatter(number(first)?, number(count)?),
        ["fill", first, count] => machine.fill(number(first)?, number(count)?),
        ["loop", rate, first, count] => machine.start_loop(number(rate)?, number(first)?, number(count)?),
        ["pause"] => machine.pause(),
        ["resume"] => machine.resume(),
        ["slot", "add", id, page, pages] => {
            machine.add_slot(number(id)? as u32, number(page)?, number(pages)?)
        }
        ["slot", "del", id] => machine.delete_slot(number(id)? as u32),
        ["slot", "move", id, page] => machine.move_slot(number(id)? as u32, number(page)?),
        ["punch", id, page, count] => {
            machine.advise(number(id)? as u32, number(page)?, number(count)?, Advise::PunchHole)
        }
        ["madvise", id, page, count, how] => {
            let how = match *how {
                "remove" => Advise::MadviseRemove,
                "dontneed" => Advise::MadviseDontneed,
                "populate" => Advise::MadvisePopulate,
                other => return Err(format!("madvise {other} is not remove, dontneed or populate")),
            };
            machine.advise(number(id)? as u32, number(page)?, number(count)?, how)
        }
        ["mlock", id, page, count] => {
            machine.advise(number(id)? as u32, number(page)?, number(count)?, Advise::Mlock)
        }
        ["replace", id, page, count] => {
            machine.advise(number(id)? as u32, number(page)?, number(count)?, Advise::Replace)
        }
        ["collapse", id, page] => machine.collapse(number(id)? as u32, number(page)?),
        ["remap", id] => machine.remap(number(id)? as u32, false),
        ["remap", id, "other"] => machine.remap(number(id)? as u32, true),
        ["relocate", id] => machine.relocate(number(id)? as u32),
        ["uring", "open", path] => machine.open_uring(path),
        ["uring", "close"] => machine.close_uring(),
        ["uring", "register", page, count] => machine.register_buffer(number(page)?, number(count)?),
        ["uring", "unregister"] => machine.unregister_buffer(),
        ["uring", "read", page, count] => machine.read_uring(number(page)?, number(count)?, false),
        ["uring", "fixed", page, count] => machine.read_uring(number(page)?, number(count)?, true),
        ["fork"] => machine.fork(),
        ["child", "poke", page, count, seed] => {
            machine.child_poke(number(page)?, number(count)?, number(seed)? as u32)
        }
        ["child", "end"] => machine.end_child(),
        ["truncate", id, pages] => machine.truncate(number(id)? as u32, number(pages)?),
        ["disk", "open", path] => machine.open_disk(path),
        ["disk", "close"] => machine.close_disk(),
        ["disk", "pread", page, count] => machine.read_disk(number(page)?, number(count)?, How::Pread),
        ["disk", "aio", page, count] => machine.read_disk(number(page)?, number(count)?, How::Aio),
        ["disk", "wait"] => machine.wait_for_disk(),
        ["dirty"] => machine.dirty(),
        ["layout"] => machine.layout(),
        _ => Err(format!("unknown command {words:?}")),
    }
    .map_err(|error| format!("{words:?}: {error}"))
}

pub(crate) fn number(word: &str) -> Result<u64> {
    word.parse().map_err(|_| format!("{word:?} is not a number"))
}
