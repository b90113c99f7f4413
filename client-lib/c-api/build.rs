//! The name by which programs remember the library they were linked with.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libbb_client.so.1");
    println!("cargo:rerun-if-changed=build.rs");
}
