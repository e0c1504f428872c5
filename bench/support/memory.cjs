// Loaded into the service under test: on SIGUSR2 it collects garbage and prints the memory in use.
process.on('SIGUSR2', () => {
  for (let n = 0; n < 3; n += 1) globalThis.gc();
  const { heapUsed, external, rss } = process.memoryUsage();
  process.stdout.write(`memory ${heapUsed + external} ${rss} \n`);
});
