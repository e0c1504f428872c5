import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { prepare, root } from './prepare.mjs';

// npm run chaos -- --seconds 60 --seed 1 [--nodes 2] [--planted <name>|all]
prepare();
const child = spawn(
  process.execPath,
  [
    '-r',
    join(root, 'test/support/typescript-hook.cjs'),
    join(root, 'test/chaos/main.ts'),
    ...process.argv.slice(2),
  ],
  { stdio: 'inherit' },
);
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => child.kill(signal));
child.once('exit', (code) => process.exit(code ?? 1));
