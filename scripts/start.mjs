import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { prepare, root } from './prepare.mjs';

prepare();
// In this process, so that Ctrl-C and kill reach the service itself and its exit code is ours.
await import(pathToFileURL(join(root, 'dist', 'main.js')).href);
