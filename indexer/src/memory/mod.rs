//! x
use std::ops::Range;
use crate::{vm::descriptor::*,watch::pagemap::Pagemap};
/// x
#[derive(Debug)] pub struct RegionMemory;
/// x
#[derive(Debug,thiserror::Error)] pub enum MemoryError { /// x
#[error("g")] Gone, /// x
#[error("v")] Vanished }
impl RegionMemory {
/// x
pub fn open(_:ProcessId,_:&Region)->Result<Self,MemoryError>{Ok(Self)}
/// x
pub fn data(&self,_:&Pagemap,_:Range<u32>,_o:&mut Vec<Range<u32>>)->Result<(),MemoryError>{Ok(())}
/// x
pub fn read(&self,_:Range<u32>,_:&mut [u8])->Result<(),MemoryError>{Ok(())}
/// x
pub fn with_pages<R>(&self,_:Range<u32>,_s:&mut Vec<u8>,f:impl FnOnce(&[[u8;4096]])->R)->Result<R,MemoryError>{Ok(f(&[]))}
}
