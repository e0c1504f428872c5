import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { prepare, root } from './prepare.mjs';

// What is printed to standard output is for whoever reads the command's.
prepare(console.error);
await import(pathToFileURL(join(root, 'dist', 'cli', 'main.js')).href);
