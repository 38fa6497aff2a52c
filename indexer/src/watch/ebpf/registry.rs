//! Which processes the programs know: the entries of the maps that are shared by all VMs.
//!
//! Owns inserting and removing them, in an order that leaves no moment at which a program could find half of an entry.

use std::{
    collections::HashMap as Tracked,
    os::fd::AsFd as _,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, HashOfMaps, MapData, MapError},
};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY;
use indexer_common::{
    calls::{Calls, InFlight},
    marks::{ELEMENT, File, MAP_FLAGS},
};

use super::{
    TrackError,
    layout::Plan,
    shared::{Mapping, Plain},
};

/// The maps, and who is in them.
#[derive(Debug)]
pub(super) struct Registry {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    vms: HashOfMaps<MapData, u32, MapData>,
    calls: HashMap<MapData, u32, Plain<Calls>>,
    in_flight: HashMap<MapData, u64, Plain<InFlight>>,
    gate: Gate,
    ram_files: HashMap<MapData, Plain<File>, u32>,
    tracked: Tracked<u32, Process>,
    /// Counts tracks; also the source of epochs.
    last: u64,
}

/// The counters of the whole host.
struct Gate(Array<MapData, u64>);

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Gate").finish_non_exhaustive()
    }
}

/// A tracked process.
#[derive(Debug)]
struct Process {
    /// The track the programs use now.
    serial: u64,
    /// Tracks not yet forgotten; the call counters live until the last.
    users: usize,
    /// Its RAM files, as the programs know them.
    files: Vec<File>,
}

impl State {
    /// A process has this RAM file no more. Another one that is tracked may have it too (a VM on its way to another VMM): then the file is that one's.
    fn let_go_of(&mut self, file: &File, pid: u32) {
        let other =
            self.tracked.iter().find(|(other, process)| **other != pid && process.files.contains(file));
        match other {
            Some((other, _)) => {
                let _ = self.ram_files.insert(Plain(*file), other, 0);
            }
            None => {
                let _ = self.ram_files.remove(&Plain(*file));
            }
        }
    }
}

impl Registry {
    /// Takes the shared maps out of the loaded object.
    pub(super) fn new(object: &mut Ebpf) -> Result<Self, MapError> {
        let mut take =
            |name: &str| object.take_map(name).ok_or_else(|| MapError::InvalidName { name: name.to_owned() });
        let state = State {
            vms: HashOfMaps::try_from(take("VMS")?)?,
            calls: HashMap::try_from(take("CALLS")?)?,
            in_flight: HashMap::try_from(take("IN_FLIGHT")?)?,
            gate: Gate(Array::try_from(take("GATE")?)?),
            ram_files: HashMap::try_from(take("RAM_FILES")?)?,
            tracked: Tracked::new(),
            last: 0,
        };
        Ok(Self { state: Mutex::new(state) })
    }

    /// Makes the programs mark the pages of a process as `plan` says. Returns the serial number of this track and the marks' memory.
    ///
    /// When this returns, no program uses an earlier plan of the process any more: the kernel waits for them in the update
    /// (`maybe_wait_bpf_programs` in kernel/bpf/syscall.c).
    pub(super) fn track(&self, pid: u32, plan: &Plan) -> Result<(u64, Mapping), TrackError> {
        let definition = aya_obj::Map::new_from_params(
            BPF_MAP_TYPE_ARRAY as u32,
            size_of::<u32>() as u32,
            ELEMENT as u32,
            plan.elements,
            MAP_FLAGS as u32,
        );
        let failed = |error: MapError| TrackError::Map { pid, error };
        let map = MapData::create(definition, "marks", None).map_err(failed)?;
        let mapping =
            Mapping::new(map.fd().as_fd(), plan).map_err(|error| TrackError::Mapping { pid, error })?;

        let mut state = self.lock();
        state.last += 1;
        let serial = state.last;
        // Counters first: a program that finds the process must find its counters.
        if !state.tracked.contains_key(&pid) {
            let calls = Calls { epoch: serial, ..Calls::default() };
            state.calls.insert(pid, Plain(calls), 0).map_err(failed)?;
        }
        if let Err(error) = state.vms.insert(pid, &map, 0) {
            if !state.tracked.contains_key(&pid) {
                let _ = state.calls.remove(&pid);
            }
            return Err(failed(error));
        }
        let files = &plan.files;
        let process =
            state.tracked.entry(pid).or_insert_with(|| Process { serial, users: 0, files: Vec::new() });
        process.serial = serial;
        process.users += 1;
        let before = std::mem::replace(&mut process.files, files.clone());
        for file in before.iter().filter(|file| !files.contains(file)) {
            state.let_go_of(file, pid);
        }
        for file in files {
            // Full (which takes thousands of files): discovery finds who else maps this one.
            let _ = state.ram_files.insert(Plain(*file), pid, 0);
        }
        Ok((serial, mapping))
    }

    /// Ends a track. The programs go on marking if the process has been tracked anew.
    pub(super) fn forget(&self, pid: u32, serial: u64) {
        let mut state = self.lock();
        let Some(process) = state.tracked.get_mut(&pid) else { return };
        process.users -= 1;
        let (current, last) = (process.serial == serial, process.users == 0);
        // Errors: the entries are there, and the kernel has no other reason to refuse.
        if current {
            let _ = state.vms.remove(&pid);
        }
        if last {
            let files = state.tracked.remove(&pid).map(|process| process.files).unwrap_or_default();
            for file in &files {
                state.let_go_of(file, pid);
            }
            let _ = state.calls.remove(&pid);
            let stale: Vec<u64> =
                state.in_flight.keys().flatten().filter(|key| key >> 32 == u64::from(pid)).collect();
            for thread in stale {
                let _ = state.in_flight.remove(&thread);
            }
        }
    }

    /// The counters of a process.
    pub(super) fn calls(&self, pid: u32) -> Option<Calls> {
        self.lock().calls.get(&pid, 0).ok().map(|Plain(calls)| calls)
    }

    /// One of the counters of the whole host.
    pub(super) fn gate(&self, counter: u32) -> Option<u64> {
        self.lock().gate.0.get(&counter, 0).ok()
    }

    /// A panic elsewhere leaves the maps in the kernel as valid as they were.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
