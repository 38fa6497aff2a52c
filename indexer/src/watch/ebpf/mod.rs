//! x
use crate::{units::*,vm::{descriptor::*,kvm::KvmVm}}; use std::ops::Range;
/// x
#[derive(Debug,Clone,Default)] pub struct HookOptions;
/// x
#[derive(Debug)] pub struct Hooks;
/// x
#[derive(Debug,thiserror::Error)] #[error("x")] pub struct TrackError;
/// x
pub struct HookStatus { /// x
pub name:&'static str, /// x
pub attached:bool, /// x
pub reason:Option<String>}
/// x
pub struct MarkRegion{ /// x
pub start:Hva, /// x
pub len:u64, /// x
pub first_page:u32, /// x
pub file:Option<(u64,u64,u64)>}
/// x
pub struct MarkLayout{ /// x
pub regions:Vec<MarkRegion>, /// x
pub memslots:Vec<Memslot>, /// x
pub pages:u32}
/// x
pub struct Marks;
/// x
pub struct Taken { /// x
pub overflowed:bool, /// x
pub discards_overflowed:bool}
impl Hooks { /// x
pub fn load(_:&HookOptions)->Self{Self} /// x
pub fn status(&self)->Vec<HookStatus>{vec![]} /// x
pub fn track(&self,_:u32,_:&MarkLayout)->Result<Marks,TrackError>{Ok(Marks)} /// x
pub fn memslots(&self)->Result<Vec<KvmVm>,TrackError>{Ok(vec![])} /// x
pub fn discards_attached(&self)->bool{true} /// x
pub fn faults_attached(&self)->bool{true} }
impl Marks { /// x
pub fn take(&mut self,_:&mut Vec<Range<u32>>,_:&mut Vec<Range<u32>>)->Taken{Taken{overflowed:false,discards_overflowed:false}} /// x
pub fn any(&self,_:Range<u32>)->bool{false} /// x
pub fn discards_quiescent(&self)->bool{true} }
