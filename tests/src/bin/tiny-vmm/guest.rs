//! The guest: its eight instructions, and the mode it runs in.

use kvm_bindings::kvm_segment;
use kvm_ioctls::VcpuFd;

use crate::ram::PATTERN_OFFSETS;

/// Protected mode without paging, all segments 0..4 GiB.
pub(crate) fn set_flat_mode(vcpu: &VcpuFd) -> Result<(), String> {
    let mut sregs = vcpu.get_sregs().map_err(|e| format!("KVM_GET_SREGS: {e}"))?;
    let data = kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: 0x10,
        type_: 3,
        present: 1,
        dpl: 0,
        db: 1,
        s: 1,
        l: 0,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    };
    sregs.cs = kvm_segment { selector: 0x08, type_: 11, ..data };
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.cr0 |= 1;
    vcpu.set_sregs(&sregs).map_err(|e| format!("KVM_SET_SREGS: {e}"))
}

/// edi = address, ecx = pages, eax = pattern, edx = what the pattern grows by.
pub(crate) fn program() -> Vec<u8> {
    let [at_start, in_middle, at_end] = PATTERN_OFFSETS.map(u32::to_le_bytes);
    let mut code = Vec::new();
    for offset in [at_start, in_middle, at_end] {
        code.extend([0x89, 0x87]); // mov [edi + disp32], eax
        code.extend(offset);
    }
    code.extend([0x01, 0xd0]); // add eax, edx
    code.extend([0x81, 0xc7, 0x00, 0x10, 0x00, 0x00]); // add edi, 4096
    code.push(0x49); // dec ecx
    let back = -(code.len() as i8 + 2);
    code.extend([0x75, back as u8]); // jnz to the start
    code.push(0xf4); // hlt
    code
}
