import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { prepare, root } from './prepare.mjs';

// Standard output belongs to the command, so messages of the installation and the build go to standard error.
prepare(console.error);
await import(pathToFileURL(join(root, 'dist', 'cli', 'main.js')).href);
