//! `memdex plan`, `migrations` and `abort` as programs, and the dry run: what they print, where, and how they exit.
#![expect(clippy::unwrap_used, reason = "tests end where something is not as expected")]

mod peer;

use memdex_wire::migration::{Migration, MigrationPlan, Outcome, Phase};
use peer::{
    command::{done, run},
    good::GoodHost,
};
use serde_json::Value;

#[test]
fn a_dry_run_shows_every_check() {
    let host = GoodHost::new();
    let out = done(&host.unix, &["migrate", "vm1", "--to", "host-2", "--dry-run"]);
    for word in
        ["300 new", "CHECK", "monitor", "QEMU 10.0.2", "waits there: vm1", "guest stands still for 42.0 ms"]
    {
        assert!(out.contains(word), "{word}: {out}");
    }
    let (code, _, talk) =
        run(&host.unix, &["migrate", "vm1", "--to", "host-2", "--dry-run", "--downtime", "41ms"]);
    assert!(
        code == 0 && talk.contains("will probably not converge") && talk.contains("--downtime"),
        "{talk}"
    );
    let (code, _, talk) = run(&host.unix, &["migrate", "vm1", "--to", "host-2", "--dry-run"]);
    assert!(code == 0 && !talk.contains("converge"), "{talk}");
    for format in ["table", "json"] {
        let (code, out, error) =
            run(&host.unix, &["migrate", "vm1", "--to", "impossible", "--dry-run", "-o", format]);
        assert_eq!(code, 1);
        assert!(error.contains("cannot move to impossible as things are: destination: the guest"), "{error}");
        assert!(
            out.contains("FAILED") || serde_json::from_str::<MigrationPlan>(&out).is_ok_and(|p| !p.possible)
        );
    }
    assert!(done(&host.unix, &["migrations", "-o", "json"]).starts_with("[]"), "nothing has begun");
}

#[test]
fn migrations_are_begun_listed_and_called_off_by_hand() {
    let host = GoodHost::new();
    let (code, out, talk) = run(&host.unix, &["migrations"]);
    assert_eq!((code, out.as_str()), (0, ""));
    assert!(talk.contains("nothing moves"), "{talk}");

    let (code, id, talk) = run(&host.unix, &["migrate", "vm1", "--to", "endless", "--detach"]);
    assert_eq!((code, id.as_str()), (0, "m/1?\n"));
    assert!(talk.contains("memdex abort m/1?"), "{talk}");
    let begun: Migration = serde_json::from_str(&done(
        &host.unix,
        &["migrate", "vm1", "--to", "late", "--detach", "-o", "json"],
    ))
    .unwrap();
    assert_eq!((begun.id.as_str(), begun.phase), ("m/2?", Phase::Checking));

    let details = done(&host.unix, &["migrations", "m/1?"]);
    for word in ["m/1?, outgoing, copying, iteration 1", "100.0 MiB/s", "dirty rate 10.0 MiB/s", "line 7"] {
        assert!(details.contains(word), "{word}: {details}");
    }
    let list = done(&host.unix, &["migrations"]);
    assert_eq!(list.lines().count(), 3, "{list}");
    let lines = done(&host.unix, &["migrations", "-o", "jsonl"]);
    assert_eq!(lines.lines().filter(|line| serde_json::from_str::<Migration>(line).is_ok()).count(), 2);

    let (code, out, talk) = run(&host.unix, &["abort", "m/2?"]);
    assert_eq!((code, out.as_str()), (5, ""));
    assert!(talk.contains("handed over"), "{talk}");
    let (code, out, talk) = run(&host.unix, &["abort", "m/1?", "-o", "json"]);
    assert_eq!(code, 0, "{talk}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["outcome"], "aborted");
    let ended: Migration =
        serde_json::from_str(&done(&host.unix, &["migrations", "m/1?", "-o", "json"])).unwrap();
    assert_eq!(ended.outcome, Some(Outcome::Aborted));
}

#[test]
fn plans_come_cheapest_first_for_each_vm() {
    let host = GoodHost::new();
    let arguments =
        ["plan", "vm1", "id-4", "--to", "impossible", "--to", "far", "--to", "unreachable", "tls://near:1"];
    let (code, out, talk) = run(&host.unix, &arguments);
    assert_eq!(code, 1);
    assert!(
        talk.contains("2 of 8 plans could not be made") && talk.contains("* tracking is advisory"),
        "{talk}"
    );
    let expected = ["tls://near:1", "far", "impossible", "unreachable"];
    let rows: Vec<_> = out.lines().skip(1).collect();
    for (row, to) in rows.iter().zip(expected.iter().chain(&expected)) {
        assert!(row.contains(to), "{to}: {out}");
    }
    assert!(rows[..4].iter().all(|row| row.starts_with("vm1")), "{out}");
    assert!(rows[4..7].iter().all(|row| row.starts_with("id-4 *")), "{out}");
    assert!(rows[0].contains("yes") && rows[2].contains("no: destination: the guest"), "{out}");

    let (code, out, _) =
        run(&host.unix, &[&arguments[..], &["-o", "json", "--max-bandwidth", "1M"]].concat());
    assert_eq!(code, 1);
    let all: Vec<Value> = serde_json::from_str(&out).unwrap();
    assert_eq!(all.len(), 8);
    for (document, to) in all.iter().zip(expected.iter().chain(&expected)) {
        assert_eq!(document["to"], *to);
        if document["error"].is_null() {
            assert_eq!(serde_json::from_value::<MigrationPlan>(document.clone()).unwrap().rate, 1_000_000);
        } else {
            assert!(document["vm"].is_string() && document["code"] == "peer_unreachable", "{document}");
        }
    }

    // All VMs of the host, by id, as names need not be unique.
    let lines = done(&host.unix, &["plan", "--to", "host-2", "-o", "jsonl"]);
    let names: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<_> = names.iter().map(|plan| plan["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["id-1", "id-2", "id-3", "id-4"]);

    let (_folder, nobody) = peer::nobody();
    let nobody = format!("unix:{}", nobody.display());
    assert_eq!(run(&nobody, &["plan", "vm1", "--to", "host-2"]).0, 4);
}
