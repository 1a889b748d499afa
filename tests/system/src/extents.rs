//! Where the bytes of a file lie on its block device.

use std::ops::Range;
use std::path::Path;
use std::process::Command;

const BLOCK_BYTES: u64 = 4096;

/// The ranges of the device that a file without holes lies in, in the order of its bytes. The last one ends with a
/// whole block.
///
/// # Errors
/// Why they cannot be told here.
pub fn extents(file: &Path) -> Result<Vec<Range<u64>>, String> {
    let output = Command::new("filefrag")
        .args(["-v", "-b4096"])
        .arg(file)
        .output()
        .map_err(|error| format!("filefrag cannot be run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut extents = Vec::new();
    // "  0:        0..    1023:      34816..     35839:   1024:             last,eof"
    for line in text.lines() {
        let fields: Vec<&str> = line.split(':').map(str::trim).collect();
        let [number, _, physical, blocks, ..] = fields[..] else {
            continue;
        };
        let first = physical.split("..").next().unwrap_or_default().trim();
        if let (Ok(_), Ok(first), Ok(blocks)) = (
            number.parse::<u32>(),
            first.parse::<u64>(),
            blocks.parse::<u64>(),
        ) {
            extents.push(first * BLOCK_BYTES..(first + blocks) * BLOCK_BYTES);
        }
    }
    if extents.is_empty() {
        let path = file.display();
        return Err(format!("filefrag found nothing of {path}: {text}"));
    }
    Ok(extents)
}

/// Where on the device these bytes of a file are, given its extents.
#[must_use]
pub fn part_of(extents: &[Range<u64>], bytes: &Range<u64>) -> Vec<Range<u64>> {
    let mut before = 0;
    let mut found = Vec::new();
    for extent in extents {
        let length = extent.end - extent.start;
        let from = bytes.start.clamp(before, before + length) - before;
        let to = bytes.end.clamp(before, before + length) - before;
        if from < to {
            found.push(extent.start + from..extent.start + to);
        }
        before += length;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_a_file_are_found_in_all_the_extents_that_they_reach_into() {
        let extents = [100..200, 500..550, 10..20];
        let parts = |bytes| -> Vec<(u64, u64)> {
            let found = part_of(&extents, &bytes).into_iter();
            found.map(|range| (range.start, range.end)).collect()
        };
        assert_eq!(parts(0..10), [(100, 110)]);
        assert_eq!(parts(90..155), [(190, 200), (500, 550), (10, 15)]);
        assert_eq!(parts(150..160), [(10, 20)]);
        assert_eq!(parts(160..170), []);
    }
}
