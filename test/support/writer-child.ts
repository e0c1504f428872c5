import { createInterface } from 'node:readline';
import { EventLog } from '../../src/event-store/log.js';
import { appendOf } from './append.js';

/**
 * A node that only writes, in a process of its own: `writer-child.ts <url> <name> <streams>`. It appends one event
 * after the other to each of its streams, to all streams at the same time, and prints `ok <stream> <version>` for each
 * acknowledged append. A line on its standard input, such as `stop`, ends it in order.
 */
async function main(url: string, name: string, streams: number): Promise<void> {
  const store = await EventLog.open(url);
  let stopped = false;
  createInterface(process.stdin)
    .on('line', () => (stopped = true))
    .on('close', () => (stopped = true));
  const write = async (streamId: string): Promise<void> => {
    for (let version = 0; !stopped;) {
      const append = appendOf({ tenant: 'load', streamId }, version, [
        { type: 'Written', data: { by: name } },
      ]);
      const result = await store.append(append);
      if (result.status !== 'ok') throw new Error(`${streamId} at ${version}: ${result.status}`);
      version = result.version;
      process.stdout.write(`ok ${streamId} ${version}\n`);
    }
  };
  process.stdout.write('ready\n');
  await Promise.all(Array.from({ length: streams }, (_, index) => write(`${name}-${index}`)));
  await store.close();
  process.stdin.destroy();
}

const [url = '', name = '', streams = '1'] = process.argv.slice(2);
main(url, name, Number(streams)).catch((error: unknown) => {
  console.error(error);
  process.exit(1);
});
