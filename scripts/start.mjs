import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { prepare, root } from './prepare.mjs';

prepare();
// The service runs in this process, so that Ctrl-C and kill reach it, and its exit code is that of this script.
await import(pathToFileURL(join(root, 'dist', 'main.js')).href);
