//! probe
use std::{io::*,time::*};
use indexer::host::*;
#[tokio::main]
async fn main(){
 tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
 let host=Host::start(HostOptions::default()).unwrap();
 println!("ready"); for h in host.hooks().status(){ if !h.attached {eprintln!("{h:?}");} }
 for line in std::io::stdin().lock().lines(){ let line=line.unwrap(); let w:Vec<_>=line.split(' ').collect();
  match w[0]{
   "sync"=>{ match host.find(w[1]){ Ok(vm)=>{let t=Instant::now(); let r=vm.sync(Duration::from_secs(20)).await; println!("sync {:?} {:?}",t.elapsed(),r);} Err(e)=>println!("{e}")} }
   "verify"=>{ match host.find(w[1]){ Ok(vm)=>{println!("verify {:?}",vm.verify(Duration::from_secs(20)).await);} Err(e)=>println!("{e}")} }
   "info"=>{ match host.find(w[1]){ Ok(vm)=>{println!("{:?} {:?}",vm.info().tracking,vm.counters);} Err(e)=>println!("{e}")} }
   "dump"=>{ let vm=host.find(w[1]).unwrap(); let mut f=BufWriter::new(std::fs::File::create(w[2]).unwrap());
     for r in vm.snapshot().records(None){ let fp=r.fingerprint.map(|f|f.to_string()).unwrap_or("-".into()); writeln!(f,"{} {} {:?} {}",r.page,r.offset,r.state,fp).unwrap(); } f.flush().unwrap(); println!("dumped"); }
   _=>println!("?") } std::io::stdout().flush().unwrap(); }
 host.stop();
}
