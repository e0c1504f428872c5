import type { HttpAdapterHost } from '@nestjs/core';
import { type z } from 'zod';
import { serverOf } from './backend-adapter.js';
import { type ErrorAnswer, renderProblem } from './problem.js';

/**
 * A part of the API with a protocol and a form of errors of its own. All errors below its path are answered in that
 * form: errors of handlers, unknown callers, unknown paths, and bodies that are too large or not JSON.
 */
export interface Surface {
  /** The beginning of the paths of this surface, e.g. `/openai/v1`. The longest prefix that fits a path decides. */
  readonly prefix: string;
  /** @param path of the request, without its query; undefined when it could not be read */
  readonly renderError: (error: unknown, path: string | undefined) => ErrorAnswer;
  /** A header that carries the correlation id of the request, under the name that clients of the protocol know. */
  readonly requestIdHeader?: string;
  /** How the documents of the API show the surface: under which tag, and which schema its errors have. */
  readonly document: { readonly tag: string; readonly contentType: string; readonly errors: z.ZodType };
}

/** Problem documents (RFC 9457), the form of `/v1` and of all paths that belong to no other surface. */
const NATIVE: Omit<Surface, 'document'> = { prefix: '', renderError: renderProblem };

declare module 'fastify' {
  interface FastifyInstance {
    surfaces: Surface[];
  }
}

/**
 * Adds a surface to the application. A feature does this in `onModuleInit` of its module, which Nest gives the
 * adapter's host: that is before the server listens.
 */
export function addSurface(host: HttpAdapterHost, surface: Surface): void {
  const fastify = serverOf(host);
  if (!fastify) return;
  fastify.surfaces.push(surface);
  fastify.surfaces.sort((a, b) => b.prefix.length - a.prefix.length);
}

/** The surface that a path belongs to. */
export const surfaceOf = (surfaces: readonly Surface[], path: string): Omit<Surface, 'document'> =>
  addedSurfaceOf(surfaces, path) ?? NATIVE;

/** The surface that was added for a path; undefined for those of the service itself. */
export const addedSurfaceOf = (surfaces: readonly Surface[], path: string): Surface | undefined =>
  surfaces.find(({ prefix }) => path === prefix || path.startsWith(`${prefix}/`));
