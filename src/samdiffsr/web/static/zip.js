// A zip archive of files that are stored as they are: pictures do not get smaller by another compression.

const TABLE = Uint32Array.from({ length: 256 }, (_, start) => {
  let value = start;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

function crc32(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = TABLE[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

/** Numbers in little-endian order: [value, bytes], ... */
function pack(...fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [, size]) => sum + size, 0)));
  let at = 0;
  for (const [value, size] of fields) {
    if (size === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += size;
  }
  return view.buffer;
}

/** files: [{name, blob}] -> Blob. Equal names get a number. A zip of this simple kind ends at 4 GB. */
export async function zip(files) {
  const parts = [], directory = [], taken = new Set();
  let offset = 0;
  for (const { name: wanted, blob } of files) {
    let name = wanted;
    for (let number = 2; taken.has(name); number++) name = wanted.replace(/(\.[^.]*)?$/, ` (${number})$1`);
    taken.add(name);
    const bytes = new Uint8Array(await blob.arrayBuffer());
    const encoded = new TextEncoder().encode(name);
    const common = [[20, 2], [0x800, 2], [0, 2], [0, 2], [0x21, 2], [crc32(bytes), 4], [bytes.length, 4], [bytes.length, 4], [encoded.length, 2], [0, 2]];
    const header = pack([0x04034b50, 4], ...common);
    parts.push(header, encoded, blob);
    directory.push(pack([0x02014b50, 4], [20, 2], ...common, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]), encoded);
    offset += header.byteLength + encoded.length + bytes.length;
    if (offset > 0xffffffff) throw new Error("The pictures are more than the 4 GB that a zip file holds; save them one by one.");
  }
  const size = directory.reduce((sum, part) => sum + part.byteLength, 0);
  const end = pack([0x06054b50, 4], [0, 2], [0, 2], [files.length, 2], [files.length, 2], [size, 4], [offset, 4], [0, 2]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}
