//! Names that other languages can say: no name in the compiled schemas is a keyword of Python, C++ or Go, or one that pycapnp keeps for itself.

use std::collections::{BTreeMap, BTreeSet};

use capnp::schema_capnp::{code_generator_request, node};

/// Python 3.14, its soft keywords but for `type` and `_`, which are keywords only where no name of ours can stand.
const PYTHON: &str = "False None True and as assert async await break class continue def del elif else except finally for from global if import in \
    is lambda nonlocal not or pass raise return try while with yield case match";
/// C++23, its alternative tokens and the names that modules and coroutines use, and what libc's headers define as macros.
const CPP: &str = "alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t char32_t class co_await co_return \
    co_yield compl concept const const_cast consteval constexpr constinit continue decltype default delete do double dynamic_cast else enum explicit \
    export extern false final float for friend goto if import inline int long module mutable namespace new noexcept not not_eq nullptr operator or or_eq \
    override private protected public register reinterpret_cast requires return short signed sizeof static static_assert static_cast struct switch \
    template this thread_local throw true try typedef typeid typename union unsigned using virtual void volatile wchar_t while xor xor_eq \
    errno major makedev minor stderr stdin stdout linux unix";
/// Go 1, its keywords and what it predeclares as constants, where a generated name may be in lower case.
const GO: &str = "break case chan const continue default defer else fallthrough for func go goto if import interface map package range return select \
    struct switch type var false iota nil true";
/// Parameters of pycapnp's own method that makes a call: a method's parameter of that name cannot be given.
const PYCAPNP_CALL: &str = "self name word_count args kwargs";
/// Attributes of pycapnp's capabilities: a method of that name cannot be called.
const PYCAPNP_CAPABILITY: &str = "cast_as schema upcast";
/// Attributes of pycapnp's readers, builders, requests, promises and responses: a field of that name cannot be read.
const PYCAPNP_STRUCT: &str = "adopt as_builder as_reader cancel clear_write_flag copy disown from_dict get_data_as_view init init_resizable_list \
    is_consumed is_root schema send then to_bytes to_bytes_packed to_dict to_segments total_size wait which write write_async write_packed";

fn refused(name: &str, more: &str) -> bool {
    [PYTHON, CPP, GO, more].iter().flat_map(|list| list.split_whitespace()).any(|word| word == name)
}

/// Every name in our own files of a request: where it stands, the name, and what more it may not be there.
fn names(request: code_generator_request::Reader<'_>) -> capnp::Result<Vec<(String, String, &'static str)>> {
    let ours: BTreeSet<u64> = request.get_requested_files()?.iter().map(|file| file.get_id()).collect();
    let nodes: BTreeMap<u64, node::Reader<'_>> =
        request.get_nodes()?.iter().map(|node| (node.get_id(), node)).collect();
    let is_ours = |mut id: u64| {
        while let Some(node) = nodes.get(&id).filter(|node| node.get_scope_id() != 0) {
            id = node.get_scope_id();
        }
        ours.contains(&id)
    };
    let fields = |id: u64| match nodes.get(&id).map(|node| node.which()) {
        Some(Ok(node::Struct(of))) => of.get_fields()?.iter().map(|field| Ok(field.get_name()?.to_string()?)).collect(),
        _ => capnp::Result::Ok(Vec::new()),
    };
    let mut names = Vec::new();
    for node in nodes.values().filter(|node| is_ours(node.get_id())) {
        let place = node.get_display_name()?.to_str()?;
        let mut here = |name: String, more| names.push((place.to_owned(), name, more));
        for nested in node.get_nested_nodes()? {
            here(nested.get_name()?.to_string()?, "");
        }
        match node.which()? {
            node::Struct(_) => fields(node.get_id())?.into_iter().for_each(|name| here(name, PYCAPNP_STRUCT)),
            node::Enum(of) => {
                for enumerant in of.get_enumerants()? {
                    here(enumerant.get_name()?.to_string()?, "");
                }
            }
            node::Interface(of) => {
                for method in of.get_methods()? {
                    here(method.get_name()?.to_string()?, PYCAPNP_CAPABILITY);
                    fields(method.get_param_struct_type())?.into_iter().for_each(|name| here(name, PYCAPNP_CALL));
                    fields(method.get_result_struct_type())?.into_iter().for_each(|name| here(name, PYCAPNP_STRUCT));
                }
            }
            _ => {}
        }
    }
    Ok(names)
}

#[test]
fn no_name_is_a_keyword_of_python_cpp_or_go_or_pycapnps_own() {
    let file = std::fs::File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/volt.request")).unwrap();
    let message = capnp::serialize::read_message(std::io::BufReader::new(file), capnp::message::ReaderOptions::new());
    let message = message.unwrap();
    let request = message.get_root::<code_generator_request::Reader<'_>>().unwrap();
    let names = names(request).unwrap();
    for known in ["KernelStore", "importKernel", "alias", "interfaceName", "exhausted", "maxCapabilities"] {
        assert!(names.iter().any(|(_, name, _)| name == known), "{known} was not looked at");
    }
    let bad: Vec<_> = names.iter().filter(|(_, name, more)| refused(name, more)).collect();
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn a_keyword_is_refused_wherever_it_stands() {
    let words = [("import", ""), ("delete", ""), ("range", ""), ("name", PYCAPNP_CALL), ("which", PYCAPNP_STRUCT)];
    assert!(words.iter().all(|(word, more)| refused(word, more)));
    assert!(["name", "which", "importKernel", "alias"].iter().all(|word| !refused(word, "")));
}
