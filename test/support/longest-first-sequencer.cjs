const { default: TestSequencer } = require('@jest/test-sequencer');

/**
 * The order of the test files: the longest first, so that no worker is left with a long file when the others are done.
 * Jest remembers in its cache folder how long each file took. In a fresh clone it remembers nothing; then the size of a
 * file stands for its duration, with a weight for the kind of its tests.
 */
module.exports = class LongestFirstSequencer extends TestSequencer {
  sort(tests) {
    const expected = new Map(tests.map((test) => [test, this.time(test) ?? expectedMs(test)]));
    return [...tests].sort((one, other) => expected.get(other) - expected.get(one));
  }
};

/** Milliseconds for each byte of a file, as measured over all files of a folder. */
const MS_PER_BYTE = [
  ['/test/integration/kafka/', 3],
  ['/test/unit/', 0.1],
];
const OTHER_MS_PER_BYTE = 0.8;

function expectedMs({ path, context }) {
  const [, msPerByte = OTHER_MS_PER_BYTE] = MS_PER_BYTE.find(([folder]) => path.includes(folder)) ?? [];
  return (context.hasteFS.getSize(path) ?? 0) * msPerByte;
}
