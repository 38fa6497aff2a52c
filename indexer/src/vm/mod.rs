//! Who runs here.
pub mod descriptor;
pub mod filter;
pub mod kvm;
use std::sync::Arc;
/// x
pub struct Discovery;
impl Discovery { 
/// x
pub fn new(_f: filter::NameFilter)->Self{Self} 
/// x
pub fn sweep(&mut self,_k:Option<&[kvm::KvmVm]>)->Vec<Arc<descriptor::VmDescriptor>>{vec![]} }
