use std::collections::BTreeMap;

use serde_json::json;

use super::*;

fn read(text: &str, variables: &[(&str, &str)]) -> Result<Call, Refusal> {
    let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
    Call::read(text, |name| variables.get(name).map(OsString::from), &mut None)
}

#[test]
fn workload_is_the_same_for_the_same_names_fits_and_is_no_other_s() {
    let long = "0123456789abcdef".repeat(4);
    let mut seen = BTreeSet::new();
    for n in 0..10_000 {
        seen.insert(workload("pods", &format!("{}{n:05}", &long[..30]), "eth0"));
    }
    assert_eq!(seen.len(), 10_000);
    for (name, id, interface) in [
        ("pods", long.as_str(), "eth0"),
        ("pods", long.as_str(), "eth1"),
        ("others", long.as_str(), "eth0"),
        ("podse", "th0", "x"),
        ("pods", "eth0x", "y"),
        ("pods", "UPPER.and_more-", "eth0"),
        ("pods", "---", "eth0"),
    ] {
        let made = workload(name, id, interface);
        assert!(names::is_workload(&made), "{made}");
        assert!(made.starts_with(&format!("cni-{}-", hash(&[name], 10))));
        assert_eq!(made, workload(name, id, interface));
        assert!(seen.insert(made));
    }
    assert!(workload("pods", &long, "eth0").contains("-0123456789ab-"));
}

#[test]
fn version_is_the_configuration_s_and_only_a_removal_may_be_without() {
    let config = |version: Option<&str>| {
        let mut config = json!({ "name": "pods", "type": "volt-cni" });
        if let Some(version) = version {
            config["cniVersion"] = version.into();
        }
        config.to_string()
    };
    let usual =
        |command| [("CNI_COMMAND", command), ("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/n")];
    for version in VERSIONS {
        for command in ["ADD", "DEL", "VERSION"] {
            assert_eq!(read(&config(Some(version)), &usual(command)).unwrap().version, version);
        }
    }
    assert_eq!(read(&config(None), &usual("DEL")).unwrap().version, NEWEST);
    assert_eq!(read(&config(None), &usual("ADD")).unwrap_err().code, answer::VERSION);
    assert_eq!(read(&config(Some("1.2.0")), &usual("DEL")).unwrap_err().code, answer::VERSION);
}

#[test]
fn removal_needs_no_namespace_and_collection_no_container() {
    let config =
        json!({ "cniVersion": "1.1.0", "name": "pods", "type": "volt-cni", "cni.dev/attachments": [] }).to_string();
    let del = read(&config, &[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0")]).unwrap();
    assert_eq!((del.netns, del.workload.is_some()), (None, true));
    let gc = read(&config, &[("CNI_COMMAND", "GC")]).unwrap();
    assert!(gc.valid.is_empty() && gc.workload.is_none());
    assert_eq!(gc.routes, None, "everything");
}
