//! What fuzzing tries of this crate: a function a target, which panics where a promise is broken.

use crate::{COPY_AGAIN, Error, GIVE_KERNEL, HIGHEST, Headers, LOWEST};

/// The headers of an ELF file: no byte beyond it is asked for, and what is taken for a kernel keeps the contract.
pub fn kernel_headers(file: &[u8]) {
    let read = |bytes: &mut [u8], offset: u64| {
        let offset = usize::try_from(offset).expect("it lies in the file");
        bytes.copy_from_slice(&file[offset..][..bytes.len()]);
        Ok::<(), ()>(())
    };
    let size = file.len() as u64;
    let kernel = match Headers::read(size, read) {
        Ok(kernel) => kernel,
        Err(Error::Read(())) => unreachable!("reading cannot fail"),
        Err(Error::Wrong(wrong)) => {
            assert!(!wrong.why().is_empty() && [COPY_AGAIN, GIVE_KERNEL].contains(&wrong.remedy()));
            return;
        }
    };
    assert!(!kernel.segments.is_empty());
    assert!(LOWEST <= kernel.start() && kernel.start() < kernel.end() && kernel.end() <= HIGHEST);
    for segment in &kernel.segments {
        assert!(segment.offset.checked_add(segment.file_size).is_some_and(|end| end <= size));
        assert!(segment.file_size <= segment.memory_size && segment.memory_size > 0);
    }
    assert!(kernel.segments.array_windows().all(|[below, above]| below.end() <= above.address));
    assert!(kernel.notes.iter().all(|notes| notes.range.start <= notes.range.end && notes.range.end <= size));
    kernel.check_code("entry point", kernel.entry).expect("it was checked");
    let inside = |segment: &crate::Segment| {
        segment.address <= kernel.entry && kernel.entry < segment.address + segment.file_size
    };
    assert!(kernel.segments.iter().any(inside));

    // A file that fails at any read is no kernel, and its own error comes back.
    for fails in 0..2 {
        let mut reads = 0;
        let read = |_: &mut [u8], _| {
            reads += 1;
            if reads > fails { Err(reads) } else { Ok(()) }
        };
        assert!(Headers::read(size, read).is_err());
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn kept_headers_break_no_promise() {
        testkit::corpus::replay("kernel_headers", super::kernel_headers);
    }
}
