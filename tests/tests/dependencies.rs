//! What Volt is built on, against `deny.toml`: where crates come from, under which licences, and which there are twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use volt_tests::workspace::{Workspace, cargo};

/// `deny.toml`, as far as it is looked at here.
#[derive(Deserialize)]
struct Deny {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    skip: Vec<Skip>,
}

#[derive(Deserialize)]
struct Skip {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

/// What cargo says of a crate.
#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// Nothing, `dev` or `build`.
    kind: Option<String>,
    target: Option<String>,
}

fn packages() -> Result<Vec<Package>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    let mut command = cargo();
    // Those of other systems are not here, as no build has asked for them.
    command.args(["metadata", "--format-version=1", "--offline", "--filter-platform=x86_64-unknown-linux-gnu"]);
    let out = command.current_dir(Workspace::find()?.root).output().context("Cannot run cargo")?;
    ensure!(out.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&out.stderr));
    let found: Metadata = serde_json::from_slice(&out.stdout)?;
    // Were none looked at, none would be wrong.
    ensure!(found.packages.len() > 100, "There are only {} crates", found.packages.len());
    Ok(found.packages)
}

fn deny() -> Result<Deny> {
    let path = Workspace::find()?.root.join("deny.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))?;
    Ok(toml::from_str(&text)?)
}

/// Whether a licence expression (SPDX, with the older `/` for OR) can be met with licences that are allowed. AND binds closer.
fn is_met(expression: &str, allowed: &dyn Fn(&str) -> bool) -> bool {
    let text = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = text.split_whitespace().collect();
    let (met, rest) = any(&words, allowed);
    met && rest.is_empty()
}

fn any<'a, 'b>(words: &'a [&'b str], allowed: &dyn Fn(&str) -> bool) -> (bool, &'a [&'b str]) {
    let (mut met, mut rest) = all(words, allowed);
    while let ["OR", more @ ..] = rest {
        let (other, after) = all(more, allowed);
        (met, rest) = (met || other, after);
    }
    (met, rest)
}

fn all<'a, 'b>(words: &'a [&'b str], allowed: &dyn Fn(&str) -> bool) -> (bool, &'a [&'b str]) {
    let (mut met, mut rest) = one(words, allowed);
    while let ["AND", more @ ..] = rest {
        let (other, after) = one(more, allowed);
        (met, rest) = (met && other, after);
    }
    (met, rest)
}

fn one<'a, 'b>(words: &'a [&'b str], allowed: &dyn Fn(&str) -> bool) -> (bool, &'a [&'b str]) {
    match words {
        ["(", inner @ ..] => match any(inner, allowed) {
            (met, [")", rest @ ..]) => (met, rest),
            (_, rest) => (false, rest),
        },
        [licence, "WITH", exception, rest @ ..] => (allowed(&format!("{licence} WITH {exception}")), rest),
        [licence, rest @ ..] => (allowed(licence), rest),
        [] => (false, &[]),
    }
}

#[test]
fn licence_expressions_are_met_by_one_side_of_or_and_both_of_and() {
    let allowed = |licence: &str| ["MIT", "Zlib"].contains(&licence);
    for met in
        ["MIT", "GPL-3.0 OR MIT", "MIT/Apache-2.0", "MIT AND Zlib", "(GPL-3.0 OR MIT) AND Zlib", "X AND Y OR MIT"]
    {
        assert!(is_met(met, &allowed), "{met}");
    }
    for unmet in ["", "GPL-3.0", "MIT AND GPL-3.0", "MIT WITH exception", "(MIT", "MIT)", "MIT MIT", "(MIT OR X) AND Y"]
    {
        assert!(!is_met(unmet, &allowed), "{unmet}");
    }
}

#[test]
fn crates_come_from_the_registry_under_licences_that_are_allowed() -> Result<()> {
    let Licenses { allow } = deny()?.licenses;
    let allowed = |licence: &str| allow.iter().any(|allowed| allowed == licence);
    let mut wrong = Vec::new();
    for Package { name, version, license, source, .. } in packages()? {
        // Without a source it is of this tree.
        if !source.is_none_or(|source| source.starts_with("registry+") && source.ends_with("/crates.io-index")) {
            wrong.push(format!("{name} {version} is of no registry"));
        }
        if !license.as_deref().is_some_and(|license| is_met(license, &allowed)) {
            wrong.push(format!("{name} {version} has the licence {license:?}"));
        }
    }
    ensure!(wrong.is_empty(), "Take another crate, or say in deny.toml that it may be: {wrong:#?}");
    Ok(())
}

#[test]
fn crates_that_are_there_twice_are_those_that_deny_toml_gives_a_reason_for() -> Result<()> {
    let skipped = deny()?.bans.skip;
    ensure!(skipped.iter().all(|skip| !skip.reason.is_empty()), "A crate is skipped without a reason");
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages()? {
        versions.entry(package.name).or_default().insert(package.version);
    }
    let skips = |name: &str, version: &str| skipped.iter().any(|skip| skip.name == format!("{name}@{version}"));
    let twice = |(name, versions): &(&String, &BTreeSet<String>)| {
        versions.iter().filter(|version| !skips(name, version)).count() > 1
    };
    let wrong: Vec<_> = versions.iter().filter(twice).collect();
    ensure!(wrong.is_empty(), "Use one version, or say in deny.toml why there are more: {wrong:#?}");
    Ok(())
}

#[test]
fn no_program_is_built_on_what_tests_share() -> Result<()> {
    const KITS: [&str; 2] = ["testkit", "testrig"];
    const OF_TESTS: [&str; 4] = ["testkit", "testrig", "volt-tests", "fuzz"];
    let mut users: BTreeMap<&str, usize> = BTreeMap::new();
    let packages = packages()?;
    for package in packages.iter().filter(|package| !OF_TESTS.contains(&package.name.as_str())) {
        for dependency in package.dependencies.iter().filter(|of| KITS.contains(&of.name.as_str())) {
            let fuzzing = dependency.target.as_deref() == Some("cfg(fuzzing)");
            let of_tests = dependency.kind.as_deref() == Some("dev") || fuzzing;
            ensure!(of_tests, "{} is built on {}", package.name, dependency.name);
            *users.entry(&dependency.name).or_default() += 1;
        }
    }
    // Were nothing looked at, nothing would be found.
    ensure!(KITS.iter().all(|kit| users.get(kit).is_some_and(|users| *users > 3)), "{users:?}");
    Ok(())
}
