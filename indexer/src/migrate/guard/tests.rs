use super::*;
use crate::migrate::journal::Decision;

use std::io::{BufRead as _, BufReader};

/// A QEMU that is in one state after the other, the last one for good, and refuses so many `cont`. Returns what it was told.
fn qemu(states: &'static [&'static str], refuses: usize) -> (Qmp, std::thread::JoinHandle<Vec<String>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let played = std::thread::spawn(move || {
        let (mut told, mut state, mut refused) = (Vec::new(), 0, 0);
        let mut answers = theirs.try_clone().unwrap();
        for line in BufReader::new(theirs).lines() {
            let request: Value = serde_json::from_str(&line.unwrap()).unwrap();
            let command = request["execute"].as_str().unwrap().to_owned();
            let id = &request["id"];
            let answer = match command.as_str() {
                "query-status" => {
                    let now = states[state.min(states.len() - 1)];
                    state += 1;
                    serde_json::json!({"return": {"status": now}, "id": id})
                }
                "cont" if refused < refuses => {
                    refused += 1;
                    serde_json::json!({"error": {"class": "GenericError", "desc": "not now"}, "id": id})
                }
                _ => serde_json::json!({"return": {}, "id": id}),
            };
            if command != "query-status" {
                told.push(command);
            }
            writeln!(answers, "{answer}").unwrap();
        }
        told
    });
    (Qmp::adopt(ours.into()).unwrap(), played)
}

fn carried_out(states: &'static [&'static str], refuses: usize, steps: Vec<Step>) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (qmp, played) = qemu(states, refuses);
        carry_out(qmp, &Orders { vm: "vm".to_owned(), steps, ..Orders::default() }).await;
        played.join().unwrap()
    })
}

#[test]
fn a_guest_that_was_stopped_is_let_run_until_it_runs() {
    let steps = vec![Step::run(&["paused"]), Step::new("after")];
    let told = carried_out(&["paused", "paused", "paused", "running"], 2, steps);
    assert_eq!(told, ["cont", "cont", "cont", "after"]);
}

#[test]
fn that_it_was_let_run_is_written_down_for_who_comes_after() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::new(folder.path().join("x"));
    let entry = |decision| Entry {
        id: "ab12".to_owned(),
        name: "vm".to_owned(),
        process: (1, 2),
        monitor: "/m".into(),
        decision,
        run: true,
        undo: Vec::new(),
    };
    let carried_out = |states: &'static [&'static str]| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (qmp, played) = qemu(states, 0);
            let orders = Orders {
                steps: vec![Step::run(&["paused"])],
                ran: Some((journal.clone(), entry(Decision::Completed))),
                ..Orders::default()
            };
            // As it comes to the guard.
            let orders = serde_json::from_slice(&serde_json::to_vec(&orders).unwrap()).unwrap();
            carry_out(qmp, &orders).await;
            played.join().unwrap()
        });
    };
    carried_out(&["paused", "running"]);
    assert!(journal.entries().is_empty(), "the source has heard: nobody needs it any more");
    journal.write(&entry(Decision::Committed)).unwrap();
    carried_out(&["postmigrate"]);
    assert_eq!(journal.entries(), [entry(Decision::Committed)], "it was not let run");
    carried_out(&["paused", "running"]);
    assert_eq!(journal.entries(), [entry(Decision::Completed)]);
}

#[test]
fn what_somebody_else_has_decided_is_not_undone() {
    for state in ["postmigrate", "shutdown", "inmigrate", "save-vm"] {
        let states: &'static [&'static str] = Box::leak(Box::new([state]));
        assert_eq!(carried_out(states, 0, vec![Step::run(&["paused"]), Step::new("after")]), ["after"]);
    }
    assert_eq!(carried_out(&["running"], 0, vec![Step::run(&["paused"])]), Vec::<String>::new());
}
