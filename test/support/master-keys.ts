import { createHash } from 'node:crypto';

/** A master key as the settings have it, the same at each run. */
export const masterKey = (name: string): string => createHash('sha256').update(name).digest('base64');
