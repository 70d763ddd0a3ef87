//! What fuzzing tries of this crate: a function a target, which panics where a promise is broken.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::Path,
};

use schema::{
    limits::{MAX_CMDLINE, MAX_DEVICES, MAX_MEMORY, MAX_VCPUS, MIN_MEMORY},
    names,
    network_capnp::{MAX_PUBLISHED, MAX_RATE, MIN_RATE},
};

use crate::{
    cli::RunArgs,
    cmdline,
    cni::{
        VERSIONS,
        config::{Call, Command},
    },
    config::{self, IP_WORDS, VmConfig},
    error::Error,
    host::published::Publish,
    vm::packet::{Answer, LONGEST, Question},
};

/// A file that describes a VM: what is taken has no key but those that there are, and is within every bound; what is not is refused with
/// what to do.
pub fn vm_files(data: &[u8]) {
    const KEYS: [&str; 10] =
        ["cmdline", "cpus", "disk", "initrd", "kernel", "memory", "name", "net", "no-reboot", "policy"];
    let Ok(text) = std::str::from_utf8(data) else { return };
    let file = match config::parse_file(text) {
        Ok(file) => file,
        Err(e) => return assert!(!ipc::chain(&e).trim().is_empty()),
    };
    let table: toml::Table = toml::from_str(text).expect("it is TOML");
    assert!(table.keys().all(|key| KEYS.contains(&key.as_str())), "{table:?}");
    let of_file = |key: &str| table.get(key).and_then(toml::Value::as_str);
    let VmConfig { name, cmdline, disks, nets, publish, vcpus, memory, .. } =
        match VmConfig::merged(&RunArgs::default(), file, Path::new("/nowhere")) {
            Ok(config) => config,
            Err(Error::Argument(argument)) => {
                return assert!(!argument.to_string().is_empty() && !argument.remedy().is_empty());
            }
            Err(other) => panic!("{other:?} is of no value in the file"),
        };
    assert!(of_file("name") == Some(&name) && names::is_vm(&name));
    assert!(of_file("cmdline").is_none_or(|given| given == cmdline));
    assert!((1..=MAX_VCPUS).contains(&vcpus));
    assert!((MIN_MEMORY..=MAX_MEMORY).contains(&memory) && memory.is_multiple_of(1 << 20));
    assert!(disks.len() <= MAX_DEVICES && nets.len() <= MAX_DEVICES);
    assert!(publish.is_empty() || !nets.is_empty());
    assert!(publish.iter().map(Publish::count).sum::<usize>() <= MAX_PUBLISHED as usize);
    for (n, one) in publish.iter().enumerate() {
        assert_eq!(one.to_string().parse().as_ref(), Ok(one));
        assert!(!publish.iter().take(n).any(|other| other.overlaps(one)));
    }
    assert_eq!(nets.iter().map(|net| &net.network).collect::<BTreeSet<_>>().len(), nets.len());
    let rates = nets.iter().flat_map(|net| [net.rate.from_guest, net.rate.to_guest]);
    assert!(rates.filter(|rate| *rate != 0).all(|rate| (MIN_RATE..=MAX_RATE).contains(&rate)));
    assert!(cmdline.len() + IP_WORDS * nets.len() <= MAX_CMDLINE && cmdline::is_closed(&cmdline));
}

/// A kernel's command line: what is added is read by the kernel behind what it reads without, init gets what it gets without, and an address
/// is seen where the kernel sees one.
pub fn command_lines(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if !cmdline::is_line(text) || !cmdline::is_closed(text) {
        return;
    }
    let (mut parameters, init) = as_the_kernel_reads(text.as_bytes());
    let told = |(name, value): &Parameter<'_>| matches!(*name, b"ip" | b"nfsaddrs") && value.is_some();
    assert_eq!(cmdline::has_address(text), parameters.iter().any(told));
    assert_eq!(cmdline::with(text, &[]), text);
    let words = ["ip=10.0.0.2::10.0.0.1".to_owned(), "ip=::1".to_owned()];
    let longer = cmdline::with(text, &words);
    // With a space beside each.
    assert!(longer.len() <= text.len() + 1 + words.iter().map(|word| 1 + word.len()).sum::<usize>());
    assert!(cmdline::is_line(&longer) && cmdline::is_closed(&longer) && cmdline::has_address(&longer));
    parameters.extend(
        words
            .iter()
            .filter_map(|word| word.split_once('='))
            .map(|(name, value)| (name.as_bytes(), Some(value.as_bytes()))),
    );
    assert_eq!(as_the_kernel_reads(longer.as_bytes()), (parameters, init), "{longer:?}");
}

/// A name, and what follows its `=`.
type Parameter<'a> = (&'a [u8], Option<&'a [u8]>);

/// The parameters in a command line, and what is init's: kernel/params.c `parse_args`.
fn as_the_kernel_reads(line: &[u8]) -> (Vec<Parameter<'_>>, Option<&[u8]>) {
    let mut parameters = Vec::new();
    let mut line = skip_spaces(line);
    while !line.is_empty() {
        let parameter;
        (parameter, line) = next_arg(line);
        if parameter == (b"--", None) {
            return (parameters, Some(line));
        }
        parameters.push(parameter);
    }
    (parameters, None)
}

/// The first parameter of a line and what is behind it: lib/cmdline.c `next_arg`, in its order of steps.
fn next_arg(line: &[u8]) -> (Parameter<'_>, &[u8]) {
    let quoted = line.starts_with(b"\"");
    let args = if quoted { &line[1..] } else { line };
    let (mut equals, mut in_quote, mut end) = (0, quoted, args.len());
    for (i, byte) in args.iter().enumerate() {
        if is_space(*byte) && !in_quote {
            end = i;
            break;
        }
        if equals == 0 && *byte == b'=' {
            equals = i;
        }
        in_quote ^= *byte == b'"';
    }
    let word = &args[..end];
    let unquoted = if quoted { word.strip_suffix(b"\"").unwrap_or(word) } else { word };
    let parameter = if equals == 0 {
        (unquoted, None)
    } else {
        let value = match word[equals + 1..].strip_prefix(b"\"") {
            Some(value) => value.strip_suffix(b"\"").unwrap_or(value),
            None => &unquoted[equals + 1..],
        };
        (&word[..equals], Some(value))
    };
    (parameter, skip_spaces(&args[end..]))
}

/// lib/ctype.c
fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ' | 0xa0)
}

fn skip_spaces(line: &[u8]) -> &[u8] {
    let start = line.iter().position(|byte| !is_space(*byte));
    &line[start.unwrap_or(line.len())..]
}

/// A packet between a supervisor and its launcher, read as both of them would: what is one is written just so.
pub fn launcher_packets(data: &[u8]) {
    let packet = &data[..data.len().min(LONGEST)];
    if let Some((number, question)) = Question::read(packet) {
        assert_eq!(question.write(number), packet);
        if let Question::Start(_, args) = question {
            assert!(!args.iter().any(|arg| arg.contains('\0')));
        }
    }
    if let Some((number, answer)) = Answer::read(packet) {
        assert_eq!(answer.write(number), packet);
    }
}

/// What an engine hands the plugin: variables, a line each, and behind an empty line the configuration. What is taken is of one attachment, or of a
/// configuration's, and within every bound; what is not is refused with why; and what was added can be removed, whatever the engine has forgotten of it.
pub fn plugin_calls(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (variables, config) = text.split_once("\n\n").unwrap_or(("", text));
    let variables: BTreeMap<&str, &str> = variables.lines().filter_map(|line| line.split_once('=')).collect();
    let read = |command: Option<&str>, noted: &mut Option<String>| {
        let variable = |name: &str| match (name, command) {
            ("CNI_COMMAND", Some(command)) => Some(OsString::from(command)),
            ("CNI_NETNS" | "CNI_ARGS", Some(_)) => None,
            _ => variables.get(name).map(OsString::from),
        };
        Call::read(config, variable, noted)
    };
    let mut noted = None;
    let outcome = read(None, &mut noted);
    assert!(noted.as_deref().is_none_or(|version| VERSIONS.contains(&version)));
    let call = match outcome {
        Ok(call) => call,
        Err(refusal) => {
            let said = refusal.json(noted.as_deref());
            return assert!(said["code"] != 0 && said["msg"].as_str().is_some_and(|why| why.contains(": ")), "{said}");
        }
    };
    assert_eq!(noted.as_ref(), Some(&call.version));
    if call.command == Command::Version {
        return;
    }
    assert!(names::is_network(&call.network));
    let is_of_it = |workload: &String| workload.starts_with(&call.prefix) && names::is_workload(workload);
    assert!(call.valid.iter().all(is_of_it));
    let is_of_one = matches!(call.command, Command::Add | Command::Del | Command::Check);
    assert_eq!(call.workload.is_some(), is_of_one);
    if let Some(workload) = &call.workload {
        assert!(is_of_it(workload) && names::is_network(&call.interface));
        let removal = read(Some("DEL"), &mut None).expect("it can be removed");
        assert_eq!(removal.workload.as_ref(), Some(workload));
    }
    assert_eq!(call.netns.is_some(), call.attaches && matches!(call.command, Command::Add | Command::Check));
    assert!(call.publish.iter().map(Publish::count).sum::<usize>() <= MAX_PUBLISHED as usize);
    for (n, one) in call.publish.iter().enumerate() {
        assert!(!call.publish.iter().take(n).any(|other| other.overlaps(one)));
    }
    let rates = [call.rate.from_guest, call.rate.to_guest];
    assert!(rates.into_iter().filter(|rate| *rate != 0).all(|rate| (MIN_RATE..=MAX_RATE).contains(&rate)));
}

#[cfg(test)]
mod tests {
    use testkit::corpus::replay;

    #[test]
    fn kept_calls_of_the_plugin_break_no_promise() {
        replay("plugin_calls", super::plugin_calls);
    }

    #[test]
    fn kept_files_of_vms_break_no_promise() {
        replay("vm_files", super::vm_files);
    }

    #[test]
    fn kept_command_lines_break_no_promise() {
        replay("command_lines", super::command_lines);
    }

    #[test]
    fn kept_packets_of_launchers_break_no_promise() {
        replay("launcher_packets", super::launcher_packets);
    }
}
