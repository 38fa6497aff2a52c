//! x
pub mod pool;
use memdex_wire::Fingerprint;
/// x
pub type Page=[u8;4096];
/// x
pub struct Hasher;
impl Hasher { 
/// x
pub fn new()->Self{Self}
/// x
pub fn fingerprint(&mut self,_p:&[Page],_o:&mut Vec<Option<Fingerprint>>){} }
