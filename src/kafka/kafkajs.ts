import { createRequire } from 'node:module';
import type * as KafkaJs from 'kafkajs';

/*
 * The package kafkajs is no longer maintained. Only this file changes its internals and knows the shape of its errors.
 */

let loaded: typeof KafkaJs | undefined;

/** Loads the package at first use, so that a service without brokers does not pay for it. */
export function kafkajs(): typeof KafkaJs {
  if (loaded) return loaded;
  const require = createRequire(__filename);
  loaded = require('kafkajs') as typeof KafkaJs;
  stopIdleTimer(require);
  return loaded;
}

/**
 * A request queue of kafkajs checks every millisecond whether a request may be sent, even while none is waiting. That
 * takes 2.7 % of a core, and from Node 24 on it warns of negative timeouts (tulios/kafkajs#1751). Checking an empty
 * queue is pointless: whatever is queued later starts the timer itself.
 */
function stopIdleTimer(require: NodeJS.Require): void {
  const { prototype } = require('kafkajs/src/network/requestQueue/index.js') as {
    prototype: { scheduleCheckPendingRequests: (this: { readonly pending: readonly unknown[] }) => void };
  };
  const { scheduleCheckPendingRequests: schedule } = prototype;
  prototype.scheduleCheckPendingRequests = function (this: { readonly pending: readonly unknown[] }) {
    if (this.pending.length > 0) schedule.call(this);
  };
}

/** The Kafka error codes, such as `MESSAGE_TOO_LARGE`, of an error and of all the errors that kafkajs wrapped in it. */
export function errorTypes(error: unknown): string[] {
  if (typeof error !== 'object' || error === null) return [];
  const { type, cause, errors } = error as { type?: unknown; cause?: unknown; errors?: unknown };
  return [
    ...(typeof type === 'string' ? [type] : []),
    ...errorTypes(cause),
    ...(Array.isArray(errors) ? errors.flatMap(errorTypes) : []),
  ];
}

/** Whether the brokers refused something because this client lacks a permission. */
export const isForbidden = (error: unknown): boolean =>
  errorTypes(error).some((type) => type.endsWith('_AUTHORIZATION_FAILED'));
