import cluster from 'node:cluster';

/*
 * What one of several processes that serve a port together says to the first one, which started it, and hears from it.
 * See `processes.ts`.
 */

/** Marks the processes of this service: a program that uses the library may be part of a cluster of its own. */
export const MARK = 'COLLOQUY_PROCESS';

export type Message =
  | { readonly colloquy: 'listening'; readonly url: string }
  | { readonly colloquy: 'metrics'; readonly id: number }
  | {
      readonly colloquy: 'metrics-of-all';
      readonly id: number;
      readonly text?: string;
      readonly error?: string;
    };

/** Whether this process is one of several that serve a port together. */
export const isOneOfSeveral = (): boolean => cluster.isWorker && process.env[MARK] !== undefined;

/** To be called when this process listens. */
export function tellListening(url: string): void {
  send({ colloquy: 'listening', url });
}

let asked = 0;

/** The metrics of all processes together. */
export function metricsOfAll(): Promise<string> {
  asked += 1;
  const id = asked;
  return new Promise((resolve, reject) => {
    const hear = (message: Message): void => {
      if (message.colloquy !== 'metrics-of-all' || message.id !== id) return;
      process.off('message', hear);
      if (message.text !== undefined) resolve(message.text);
      else reject(new Error(`the metrics of all processes could not be gathered: ${message.error ?? ''}`));
    };
    process.on('message', hear);
    send({ colloquy: 'metrics', id });
  });
}

function send(message: Message): void {
  process.send?.(message);
}
