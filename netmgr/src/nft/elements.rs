//! Elements in requests, and what the kernel has counted in them. Pure; touches nothing.

use super::{
    rules::Element,
    table::{Family, Set},
    wire::{
        Attributes, DATA_VALUE, ELEM_DATA, ELEM_EXPIRATION, ELEM_EXPRESSION, ELEM_KEY, ELEM_KEY_END, ELEM_TIMEOUT,
        ELEM_USERDATA, ELEMENTS, ELEMENTS_SET, Item, Kind, LIST_ELEM, Life, Request, TABLE,
    },
};
use crate::{
    attribute::{Malformed, attributes},
    link::Count,
};

/// Lists of elements of a table's sets, each in its family, of as many requests as it takes: an attribute's length has 16 bits.
pub fn lists_of(
    table: &str,
    kind: Kind,
    family: impl Fn(Set) -> Family,
    elements: Vec<(&Element, &Life)>,
) -> Result<Vec<Request>, Malformed> {
    let mut requests = Vec::new();
    for set in Set::ALL {
        let mut rest = elements.iter().filter(|(element, _)| element.set == set).peekable();
        while rest.peek().is_some() {
            let mut list = Attributes::default();
            let fits =
                |(element, life): &&(&Element, &Life), list: &Attributes| list.has_room(length(&element.item, life));
            while let Some((Element { item, .. }, life)) = rest.next_if(|one| fits(one, &list)) {
                list.nested(LIST_ELEM, |one| write(one, kind, item, life));
            }
            let mut attributes = Attributes::default();
            attributes.text(TABLE, table).text(ELEMENTS_SET, set.name()).list(ELEMENTS, list);
            requests.push(Request::new(kind, family(set), attributes)?);
        }
    }
    Ok(requests)
}

fn write(one: &mut Attributes, kind: Kind, item: &Item, life: &Life) {
    let Item { key, end, data, noted, limit } = item;
    // What is deleted is told by its key.
    let (data, noted) = if kind == Kind::NewSetElem { (&data[..], &noted[..]) } else { (&[][..], &[][..]) };
    for (part, bytes) in [(ELEM_KEY, &key[..]), (ELEM_KEY_END, end), (ELEM_DATA, data)] {
        if !bytes.is_empty() {
            one.nested(part, |value| _ = value.bytes(DATA_VALUE, bytes));
        }
    }
    let Life { timeout, expiration, expression } = life;
    // The kernel takes none that has longer to go than it has in all, and has some: of which a rule has made it longer since.
    let timeout = timeout.max(expiration);
    let expression = (ELEM_EXPRESSION | libc::NLA_F_NESTED as u16, expression.as_slice());
    for (part, bytes) in
        [(ELEM_TIMEOUT, &timeout[..]), (ELEM_EXPIRATION, expiration), (ELEM_USERDATA, noted), expression]
    {
        if !bytes.is_empty() {
            one.bytes(part, bytes);
        }
    }
    if let Some(limit) = limit.filter(|_| kind == Kind::NewSetElem) {
        one.nested(ELEM_EXPRESSION, |one| limit.write(one));
    }
}

/// The most bytes of an element in a list: its own header, and for each part two, and what fills it up.
fn length(item: &Item, life: &Life) -> usize {
    /// A limit's.
    const LIMIT: usize = 80;
    let (Item { key, end, data, noted, limit }, Life { timeout, expiration, expression }) = (item, life);
    let parts = [key, end, data, noted, timeout, expiration, expression];
    4 + limit.map_or(0, |_| LIMIT) + parts.iter().map(|part| part.len() + 2 * 4 + 3).sum::<usize>()
}

/// Of one that neither ages nor has counted anything.
pub static NO_LIFE: Life = Life { timeout: Vec::new(), expiration: Vec::new(), expression: Vec::new() };

/// What an element's counter says: NFTA_EXPR_DATA, and in it NFTA_COUNTER_BYTES and NFTA_COUNTER_PACKETS.
pub fn count(life: &Life) -> Result<Count, Malformed> {
    let mut count = Count::default();
    for part in attributes(&life.expression) {
        let part = part?;
        let (2, value) = (part.kind(), part.value()) else { continue };
        for one in attributes(value) {
            let one = one?;
            let number = || one.value().try_into().map(u64::from_be_bytes).map_err(|_| Malformed("count"));
            match one.kind() {
                1 => count.bytes = number()?,
                2 => count.packets = number()?,
                _ => {}
            }
        }
    }
    Ok(count)
}
