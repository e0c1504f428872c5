import { parseArgs } from 'node:util';
import { run } from './run.js';

/* The program behind `npm run chaos`. */

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      seconds: { type: 'string', default: '60' },
      seed: { type: 'string', default: '1' },
      nodes: { type: 'string', default: '2' },
    },
  });
  const [seconds, seed, nodes] = [Number(values.seconds), Number(values.seed), Number(values.nodes)];
  const { violations, ...counts } = await run({ seconds, seed, nodes, say: console.log });
  console.log(JSON.stringify(counts, null, 2));
  for (const { property, detail } of violations) console.log(`VIOLATED: ${property}: ${detail}`);
  console.log(
    violations.length === 0 ? 'everything holds' : `${violations.length} violations (seed ${seed})`,
  );
  process.exitCode = violations.length === 0 ? 0 : 1;
}

void main();
