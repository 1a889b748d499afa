//! The file `identity` of a data directory: what is taken is made of exactly the bytes that were read.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringtide_fuzz::{bounded, seal, sealed_by};
use ringtide_schema::identity::Identity;

sealed_by!(seal::identity);

fuzz_target!(|data: &[u8]| {
    let Ok(identity) = bounded(0, || Identity::decode(data)) else {
        return;
    };
    assert_eq!(identity.encode()[..], *data);
    assert!(identity.groups > 0 && identity.incarnation > 0 && identity.leader_epoch > 0);
});
