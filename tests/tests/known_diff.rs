//! Protects the promise that a diff is known before it is asked for: what a named peer holds is followed, while guests on both sides change, VMs end and daemons
//! come and go; and that nobody is told what was known of a peer that has not been heard for long.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    thread::sleep,
    time::Duration,
};

use memdex_tests::{
    Daemon, Scratch, Tiny,
    contract::{Diff, Vm},
    daemon,
    relay::Relay,
    wait,
};

/// Pages that may wrongly seem to be at the peer: of the hundreds here one in ten runs has one.
const SEEMING: u64 = 4;
const APPEAR: Duration = Duration::from_secs(5);
/// Changes are sent four times a second, and come after a page was written and read again.
const SOON: Duration = Duration::from_secs(10);

fn host(scratch: &Scratch, name: &str, vm: &str, peers: &[&str]) -> Daemon {
    let peers = peers.iter().flat_map(|peer| ["--peer".to_owned(), (*peer).to_owned()]);
    let options = daemon::Options {
        include: scratch.globs(&[vm]),
        tcp: true,
        token_file: Some(scratch.path("token")),
        arguments: peers.collect(),
        ..daemon::Options::default()
    };
    Daemon::start_with(scratch, name, &options)
}

/// Waits until what is known of the peer says so many pages.
fn known(here: &Daemon, vm: &Vm, matched: u64, missing: u64) -> Diff {
    let what = format!("{matched} pages to be known as held by the peer, and {missing} as missing");
    wait::until(&what, SOON, || {
        let diff = here.diff(&vm.id, "there");
        let pages = diff.pages;
        let right = (matched..=matched + SEEMING).contains(&pages.matched)
            && pages.matched + pages.missing == matched + missing;
        (diff.picture_age_ms.is_some() && right).then_some(diff)
    })
    .0
}

fn figure(daemon: &Daemon, name: &str) -> f64 {
    let text = String::from_utf8(daemon.get("/metrics").body).expect("text");
    let line = text.lines().find(|line| line.starts_with(&format!("memdex_peer_{name}{{peer=\"there\"")));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("no {name} in {text}"))
}

#[test]
fn what_a_peer_holds_is_known_before_it_is_asked_for() {
    let scratch = Scratch::new("known");
    let mut guests = ["a", "b"].map(|name| Tiny::start(&scratch, &scratch.name(name)));
    guests[0].write(16, 1000, 50_000);
    guests[1].write(900, 700, 50_400);
    let mut there = host(&scratch, "there", "b", &[]);
    let here = host(&scratch, "here", "a", &[&format!("there={}", there.tcp_url())]);
    let vm = here.wait_for_vm(guests[0].pid(), APPEAR).0;
    let _ = there.wait_for_vm(guests[1].pid(), APPEAR);
    // The program in page 0, and patterns 50,400 to 50,999.
    let diff = known(&here, &vm, 601, 400);
    assert!(diff.picture_age_ms.is_some_and(|age| age <= 10_000), "{diff:?}");

    // Both sides change, and nothing but the changes is sent.
    guests[1].write(2000, 100, 50_000);
    guests[1].run("zero 900 50");
    known(&here, &vm, 651, 350);
    guests[0].run("zero 16 200");
    known(&here, &vm, 551, 250);
    guests[0].write(16, 100, 50_000);
    known(&here, &vm, 651, 250);
    // More copies of one content than the reverse index names: they come and go together.
    for page in 3000..3100 {
        guests[0].write(page, 1, 77_000);
    }
    known(&here, &vm, 651, 350);
    guests[1].write(3000, 1, 77_000);
    known(&here, &vm, 751, 250);
    guests[1].run("zero 3000 1");
    known(&here, &vm, 651, 350);
    // Also once one of those that it names holds something else.
    guests[0].write(3000, 1, 50_999);
    known(&here, &vm, 652, 349);
    guests[1].write(3000, 1, 77_000);
    known(&here, &vm, 751, 250);
    guests[1].run("zero 3000 1");
    known(&here, &vm, 652, 349);
    guests[0].write(3000, 1, 77_000);
    known(&here, &vm, 651, 350);
    assert_eq!(figure(&here, "pictures_total"), 1.0);
    assert!(figure(&here, "changes_total") >= 150.0);
    assert!(figure(&here, "picture_bytes") < 500_000.0);

    // Whoever wants to, asks: to the page.
    here.sync(&vm.id);
    let asked = here.succeed(&["diff", &vm.id, "--to", "there", "--ask", "-o", "json"]);
    let asked: Diff = serde_json::from_slice(&asked).expect("the contract's JSON");
    assert_eq!((asked.picture_age_ms, asked.pages.matched, asked.pages.missing), (None, 651, 350));
    assert_eq!(
        here.diff(&vm.id, &there.tcp_url()).picture_age_ms,
        None,
        "by its URL it is nobody that is followed"
    );

    // What a VM held goes with it.
    guests[1].kill();
    known(&here, &vm, 0, 1001);
    assert_eq!(figure(&here, "pictures_total"), 1.0);

    // A daemon that comes back tells anew.
    let mut guest = Tiny::start(&scratch, &scratch.name("b"));
    guest.write(16, 500, 50_100);
    there.kill();
    there.restart(&scratch);
    let _ = there.wait_for_vm(guest.pid(), APPEAR);
    let began = std::time::Instant::now();
    known(&here, &vm, 401, 600);
    eprintln!("told anew {:?} after it was back", began.elapsed());
    assert!(figure(&here, "pictures_total") >= 2.0);

    // One that is silent is asked, and does not answer.
    there.kill();
    let (failed, _) = wait::until("what was known to be too old", Duration::from_secs(20), || {
        let output = here.memdex(&["diff", &vm.id, "--to", "there", "-o", "json"]);
        (!output.status.success()).then_some(output)
    });
    assert_eq!(failed.status.code(), Some(4), "{}", String::from_utf8_lossy(&failed.stderr));
}

/// The connection breaks, or carries nothing for some time: what changed meanwhile is told when it is there again, and nothing else is.
#[test]
fn a_link_that_breaks_costs_no_new_picture() {
    let scratch = Scratch::new("resumed");
    let mut guests = ["a", "b"].map(|name| Tiny::start(&scratch, &scratch.name(name)));
    guests[0].write(16, 1000, 50_000);
    guests[1].write(900, 700, 50_400);
    let there = host(&scratch, "there", "b", &[]);
    let _ = there.wait_for_vm(guests[1].pid(), APPEAR);
    let relay = Relay::to(([127, 0, 0, 1], there.port()).into()).expect("a relay between the hosts");
    let here = host(&scratch, "here", "a", &[&format!("there=tcp://{}", relay.address())]);
    let vm = here.wait_for_vm(guests[0].pid(), APPEAR).0;
    known(&here, &vm, 601, 400);
    let changes = figure(&here, "changes_total");

    relay.cut();
    guests[1].write(2000, 100, 50_000);
    guests[1].run("zero 900 50");
    guests[0].run("zero 16 10");
    wait::until("the break to be noticed", SOON, || {
        here.log().contains("is not followed for now").then_some(())
    });
    relay.mend();
    // Of pages 10 to 999: 50,010 to 50,099 and 50,450 to 50,999, and page 0.
    known(&here, &vm, 641, 350);

    relay.stall();
    guests[1].write(2000, 50, 90_000);
    // Held back by the relay, and nobody is told.
    sleep(Duration::from_secs(2));
    relay.mend();
    known(&here, &vm, 601, 390);
    assert_eq!(figure(&here, "pictures_total"), 1.0, "{}", here.log());
    let told = figure(&here, "changes_total") - changes;
    assert!((150.0..600.0).contains(&told), "{told} changes were told");
}

/// One that says it has a picture, and sends what is none; and one of a version that has none.
#[test]
fn a_peer_that_lies_or_does_not_know_how_is_asked() {
    let scratch = Scratch::new("lying");
    let mut guest = Tiny::start(&scratch, &scratch.name("l"));
    guest.write(16, 300, 50_000);
    let listener = std::os::unix::net::UnixListener::bind(scratch.path("liar")).expect("a socket");
    // Begins well, and goes on with buckets that are not the next ones.
    let frame = |kind: u32, payload: &[u8]| {
        [&kind.to_le_bytes()[..], &(payload.len() as u32).to_le_bytes(), payload].concat()
    };
    let begin = [&[0; 16][..], &3_u64.to_le_bytes(), &6_u64.to_le_bytes(), &0_u64.to_le_bytes()].concat();
    let lies = [
        [frame(1, &begin), frame(2, &[9, 0, 0, 0, 0, 0, 0, 0])].concat(),
        [frame(1, &begin), frame(3, &[])].concat(),
        frame(1, &[0; 40]),
        frame(4, &[0; 15]),
        vec![0xff; 64],
    ];
    let wanted = lies.len();
    let answering = std::thread::spawn(move || {
        for lie in lies {
            let (mut stream, _) = listener.accept().expect("it is asked");
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/vnd.memdex.picture.v1\r\ntransfer-encoding: chunked\r\n\r\n";
            let body = [b"MXG1\0\0\0\0".as_slice(), &[0; 16], &lie].concat();
            let _ = write!(stream, "{head}{:x}\r\n", body.len()).and_then(|()| stream.write_all(&body));
            let _ = stream.write_all(b"\r\n");
            sleep(Duration::from_millis(300));
        }
    });
    // Each daemon asks a liar once, and then not for minutes.
    for number in 0..wanted {
        let peer = format!("there=unix:{}", scratch.path("liar").display());
        let mut here = host(&scratch, &format!("here{number}"), "l", &[&peer]);
        wait::until("it to be said", APPEAR, || here.log().contains("it is asked instead").then_some(()));
        assert!(figure(&here, "picture_bytes") < 1.0);
        here.stop();
    }
    answering.join().expect("it answers all");
    drop(UnixStream::connect(scratch.path("liar")));
}
