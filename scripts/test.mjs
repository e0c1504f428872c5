import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { prepare, root } from './prepare.mjs';

prepare();
process.chdir(root);
process.argv.splice(2, 0, '-c', 'test/jest.config.cjs');
// Jest runs in this process, so that it sets the exit code and gets Ctrl-C. Arguments after `npm test --` go to Jest.
await import(pathToFileURL(join(root, 'node_modules', 'jest', 'bin', 'jest.js')).href);
