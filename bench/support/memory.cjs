// This file is loaded into the service that is measured. At SIGUSR2 it collects garbage and prints the bytes that are
// still in use.
process.on('SIGUSR2', () => {
  for (let n = 0; n < 3; n += 1) globalThis.gc();
  const { heapUsed, external, rss } = process.memoryUsage();
  process.stdout.write(`memory ${heapUsed + external} ${rss} \n`);
});
