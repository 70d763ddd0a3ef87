//! What the schemas say in words, for who reads no Rust, is what the rules of this crate check.

use std::path::Path;

use schema::{
    names::{NETWORK_RULE, WORKLOAD_RULE},
    net::{DEFAULT_GATEWAY, DEFAULT_NETWORK, DEFAULT_POOL, DEFAULT_SUBNET},
    paths,
};

/// A schema's text, in one line and without what marks its comments.
fn text(schema: &str) -> String {
    let lines = schema.lines().map(|line| line.trim_start_matches([' ', '#']));
    lines.collect::<Vec<_>>().join(" ")
}

#[test]
fn schemas_say_which_names_are_taken() {
    let of_workloads = WORKLOAD_RULE.strip_prefix("it must be ").unwrap();
    for schema in [include_str!("../host.capnp"), include_str!("../network.capnp")] {
        assert!(text(schema).contains(of_workloads), "{of_workloads}");
    }
    let (of_networks, _) = NETWORK_RULE.strip_prefix("it must be ").unwrap().split_once(", not start").unwrap();
    assert!(text(include_str!("../network.capnp")).contains(of_networks), "{of_networks}");
}

#[test]
fn schemas_say_what_the_default_network_is_and_where_a_vm_s_socket_is() {
    let (start, end) = DEFAULT_POOL;
    let network = format!(
        r#"{{"network":"{DEFAULT_NETWORK}","subnet":"{DEFAULT_SUBNET}","gateway":"{DEFAULT_GATEWAY}","pool":{{"start":"{start}","end":"{end}"}},"#
    );
    assert!(text(include_str!("../addresses.capnp")).contains(&network), "{network}");
    let socket = paths::socket(&Path::new(paths::RUNTIME).join(paths::VMS), "NAME").display().to_string();
    assert!(text(include_str!("../vm.capnp")).contains(&socket), "{socket}");
}
