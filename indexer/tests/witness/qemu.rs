//! A real QEMU, started as an ordinary user would start it, paused and running.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use indexer::{
    units::Hva,
    vm::descriptor::ProcessId,
    watch::{
        inject::{self, Call},
        pagemap::Pagemap,
        process::{Process, identify},
        userfault::{self, Origin},
    },
};

struct Qemu {
    child: Child,
    monitor: BufReader<UnixStream>,
    _folder: tempfile::TempDir,
}

impl Qemu {
    /// Firmware only; it waits for a boot device for ever.
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("qmp");
        let child = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-m", "64", "-display", "none", "-nodefaults", "-S"])
            .args([
                "-object",
                "memory-backend-memfd,id=m,size=64M,share=on",
                "-machine",
                "q35,memory-backend=m",
            ])
            .arg("-qmp")
            .arg(format!("unix:{},server,nowait", socket.display()))
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-system-x86_64 is installed by `cargo xtask setup`");
        let begun = Instant::now();
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(&socket) {
                break stream;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "QEMU does not start");
            std::thread::sleep(Duration::from_millis(20));
        };
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut qemu = Self { child, monitor: BufReader::new(stream), _folder: folder };
        qemu.monitor.read_line(&mut String::new()).unwrap();
        qemu.execute("qmp_capabilities");
        qemu
    }

    /// Runs a command and returns the answer; events are passed over.
    fn execute(&mut self, command: &str) -> String {
        writeln!(self.monitor.get_mut(), "{{\"execute\": \"{command}\"}}").unwrap();
        loop {
            let mut line = String::new();
            assert_ne!(self.monitor.read_line(&mut line).unwrap(), 0, "QEMU hung up");
            if line.starts_with("{\"return\"") {
                return line;
            }
            assert!(!line.starts_with("{\"error\""), "{line}");
        }
    }

    fn id(&self) -> ProcessId {
        identify(self.child.id()).unwrap()
    }

    /// The mapping of the RAM.
    fn ram(&self) -> std::ops::Range<Hva> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.child.id())).unwrap();
        let line = maps.lines().find(|line| line.contains("memfd:memory-backend-memfd")).unwrap();
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let address = |text| Hva(u64::from_str_radix(text, 16).unwrap());
        address(start)..address(end)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn qemu_is_tracked_paused_and_running() {
    let mut qemu = Qemu::start();
    let userfault = userfault::attach(qemu.id()).unwrap();
    println!("{:?}", userfault.report());
    assert_eq!(userfault.report().origin, Origin::Injected);
    assert!(userfault.report().stopped < Duration::from_millis(50));
    assert!(qemu.execute("query-status").contains("prelaunch"));

    let ram = qemu.ram();
    userfault.register(ram.clone()).unwrap();
    let pagemap = Pagemap::open(qemu.id()).unwrap();
    let scan = || {
        let mut written = Vec::new();
        pagemap.written(ram.clone(), &mut written).unwrap();
        written
    };
    for range in scan() {
        userfault.arm(range).unwrap();
    }
    assert!(scan().is_empty(), "a paused guest writes nothing");

    qemu.execute("cont");
    let process = Process::open(qemu.id()).unwrap();
    let begun = Instant::now();
    let mut found = 0;
    while begun.elapsed() < Duration::from_secs(2) {
        let call = Call { number: libc::SYS_getpid, arguments: [0; 3] };
        assert_eq!(inject::call(&process, call).unwrap().value, Ok(u64::from(qemu.child.id())));
        for range in scan() {
            found += 1;
            userfault.arm(range).unwrap();
        }
    }
    assert!(found > 10, "the firmware writes: {found}");
    assert!(qemu.execute("query-status").contains("running"));
    qemu.execute("stop");
    for range in scan() {
        userfault.arm(range).unwrap();
    }
    std::thread::sleep(Duration::from_millis(100));
    assert!(scan().is_empty());
    qemu.execute("cont");
    // The next daemon finds the descriptor again.
    let token = userfault.token().unwrap();
    drop(userfault);
    let again = userfault::reattach(qemu.id(), token).unwrap().unwrap();
    again.register(ram).unwrap();
    assert_eq!(again.report().origin, Origin::Reused);
    assert!(qemu.execute("query-status").contains("running"));
}
