// Compressed streams would wait for more to compress.
export default { compress: false };
