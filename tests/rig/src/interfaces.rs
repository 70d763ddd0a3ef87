//! Volt's interfaces, as the compiler of the schemas wrote them down: what is added to a schema is attacked from then on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use capnp::{
    message::ReaderOptions,
    schema_capnp::{code_generator_request, field, node, type_},
    serialize,
};

/// An interface.
#[derive(Debug)]
pub struct Interface {
    /// Its number.
    pub id: u64,
    /// Its name, without the file's.
    pub name: String,
    /// Its methods, by number.
    pub methods: Vec<Method>,
}

/// A method.
#[derive(Debug)]
pub struct Method {
    /// Its name.
    pub name: String,
    /// The struct of its parameters.
    pub params: u64,
    /// The struct of its results.
    pub results: u64,
}

/// A struct.
#[derive(Debug)]
pub struct Struct {
    /// Words of data.
    pub data: u16,
    /// Pointers.
    pub pointers: u16,
    /// What it has, but for groups.
    pub fields: Vec<Field>,
}

/// A struct's field.
#[derive(Debug)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Where it is, in units of its size.
    pub offset: u32,
    /// Of what it is.
    pub kind: Kind,
}

/// What a field may be, as far as it matters for an attack.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A number, or one of several names, of so many bits.
    Number(u32),
    /// Text.
    Text,
    /// Bytes.
    Data,
    /// The struct of that number.
    Struct(u64),
    /// A capability of the interface of that number.
    Capability(u64),
    /// A list of structs of that number.
    Structs(u64),
    /// A list of texts.
    Texts,
    /// Anything else.
    Other,
}

/// What is in `schema/volt.request`.
#[derive(Debug, Default)]
pub struct Schema {
    /// The interfaces, in the order of their numbers.
    pub interfaces: Vec<Interface>,
    /// The structs, by number.
    pub structs: BTreeMap<u64, Struct>,
}

/// The schemas of this source tree.
pub fn schema() -> &'static Schema {
    static SCHEMA: LazyLock<Schema> =
        LazyLock::new(|| Schema::read(include_bytes!("../../../schema/volt.request")).unwrap());
    &SCHEMA
}

impl Schema {
    fn read(request: &[u8]) -> capnp::Result<Schema> {
        let message = serialize::read_message(request, ReaderOptions::new())?;
        let mut schema = Schema::default();
        for node in message.get_root::<code_generator_request::Reader<'_>>()?.get_nodes()? {
            let full = node.get_display_name()?.to_str()?;
            match node.which()? {
                node::Interface(interface) => {
                    assert!(interface.get_superclasses()?.is_empty(), "{full}: an object of it knows two interfaces");
                    let method = |method: capnp::schema_capnp::method::Reader<'_>| {
                        let (params, results) = (method.get_param_struct_type(), method.get_result_struct_type());
                        capnp::Result::Ok(Method { name: method.get_name()?.to_string()?, params, results })
                    };
                    let methods = interface.get_methods()?.iter().map(method).collect::<capnp::Result<_>>()?;
                    let name = full.rsplit(':').next().unwrap_or_default().to_owned();
                    schema.interfaces.push(Interface { id: node.get_id(), name, methods });
                }
                node::Struct(of) => {
                    let mut fields = Vec::new();
                    for field in of.get_fields()? {
                        if let field::Slot(slot) = field.which()? {
                            let (name, kind) = (field.get_name()?.to_string()?, kind(slot.get_type()?)?);
                            fields.push(Field { name, offset: slot.get_offset(), kind });
                        }
                    }
                    let (data, pointers) = (of.get_data_word_count(), of.get_pointer_count());
                    schema.structs.insert(node.get_id(), Struct { data, pointers, fields });
                }
                _ => {}
            }
        }
        schema.interfaces.sort_by_key(|interface| interface.id);
        Ok(schema)
    }

    /// The interface of that number.
    pub fn interface(&self, id: u64) -> &Interface {
        self.interfaces.iter().find(|interface| interface.id == id).unwrap()
    }

    /// All interfaces that a call of one after the other comes to from `first`, which is among them.
    pub fn reachable(&self, first: u64) -> BTreeSet<u64> {
        let mut found = BTreeSet::new();
        let mut next = vec![first];
        while let Some(id) = next.pop() {
            if found.insert(id) {
                let mut seen = BTreeSet::new();
                self.interface(id).methods.iter().for_each(|method| self.within(method.results, &mut seen, &mut next));
            }
        }
        found
    }

    /// Adds the interfaces whose capabilities are somewhere in a struct to `found`.
    fn within(&self, of: u64, seen: &mut BTreeSet<u64>, found: &mut Vec<u64>) {
        if !seen.insert(of) {
            return;
        }
        for field in &self.structs[&of].fields {
            match field.kind {
                Kind::Capability(id) => found.push(id),
                Kind::Struct(id) | Kind::Structs(id) => self.within(id, seen, found),
                _ => {}
            }
        }
    }

    /// Every method there is, as interface and number.
    pub fn methods(&self) -> impl Iterator<Item = (u64, u16)> {
        self.interfaces.iter().flat_map(|interface| (0..count(interface)).map(|method| (interface.id, method)))
    }
}

/// How many methods an interface has.
pub fn count(interface: &Interface) -> u16 {
    u16::try_from(interface.methods.len()).unwrap()
}

fn kind(of: type_::Reader<'_>) -> capnp::Result<Kind> {
    Ok(match of.which()? {
        type_::Bool(()) => Kind::Number(1),
        type_::Int8(()) | type_::Uint8(()) => Kind::Number(8),
        type_::Int16(()) | type_::Uint16(()) | type_::Enum(_) => Kind::Number(16),
        type_::Int32(()) | type_::Uint32(()) | type_::Float32(()) => Kind::Number(32),
        type_::Int64(()) | type_::Uint64(()) | type_::Float64(()) => Kind::Number(64),
        type_::Text(()) => Kind::Text,
        type_::Data(()) => Kind::Data,
        type_::Struct(of) => Kind::Struct(of.get_type_id()),
        type_::Interface(of) => Kind::Capability(of.get_type_id()),
        type_::List(of) => match of.get_element_type()?.which()? {
            type_::Struct(of) => Kind::Structs(of.get_type_id()),
            type_::Text(()) => Kind::Texts,
            _ => Kind::Other,
        },
        _ => Kind::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use capnp::traits::HasTypeId;
    use schema::{
        addresses_capnp::{ipam, lease},
        device_capnp::device_backend,
        host_capnp::host,
        kernel_store_capnp::{kernel, kernel_store},
        network_capnp::{network_config, port},
        vm_capnp::vm,
    };

    /// What programs give to who connects to them, each of which some test has attacked: by what can be had from it, by interfaces that it
    /// is not, and by calls with any arguments.
    const ROOTS: [u64; 3] = [host::Client::TYPE_ID, ipam::Client::TYPE_ID, kernel_store::Client::TYPE_ID];

    /// What is attacked otherwise.
    const OTHERWISE: [(u64, &str); 2] = [
        (vm::Client::TYPE_ID, "in volt/tests/host/control.rs, but for what stops it"),
        (device_backend::Client::TYPE_ID, "vhost-blk-backend/tests/confinement.rs"),
    ];

    #[test]
    fn every_interface_of_the_schemas_is_attacked_or_it_is_said_why_not() {
        let attacked: BTreeSet<u64> = ROOTS.into_iter().flat_map(|root| schema().reachable(root)).collect();
        for interface in &schema().interfaces {
            let otherwise = OTHERWISE.iter().any(|(id, _)| *id == interface.id);
            assert_ne!(attacked.contains(&interface.id), otherwise, "{}: reached, or not", interface.name);
        }
    }

    #[test]
    fn interfaces_methods_and_structs_are_the_generated_codes() {
        let store = schema().interface(kernel_store::Client::TYPE_ID);
        let names: Vec<&str> = store.methods.iter().map(|method| method.name.as_str()).collect();
        assert_eq!((store.name.as_str(), names), ("KernelStore", vec!["importKernel", "get", "list", "remove"]));
        assert_eq!(schema().reachable(store.id), BTreeSet::from([store.id, kernel::Client::TYPE_ID]));
        for (root, last, len) in [(ROOTS[0], port::Client::TYPE_ID, 8), (ROOTS[1], lease::Client::TYPE_ID, 5)] {
            let reached = schema().reachable(root);
            assert!(reached.contains(&last) && reached.len() == len, "{reached:x?}");
        }
        let size = <network_config::Builder<'_> as capnp::traits::HasStructSize>::STRUCT_SIZE;
        let config = &schema().structs[&network_config::Builder::TYPE_ID];
        assert_eq!((config.data, config.pointers), (size.data, size.pointers));
        assert!(
            config.fields.iter().any(|field| field.name == "prefixLength" && matches!(field.kind, Kind::Number(8)))
        );
    }
}
