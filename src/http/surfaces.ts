import type { INestApplicationContext } from '@nestjs/common';
import { HttpAdapterHost } from '@nestjs/core';
import type { FastifyInstance } from 'fastify';
import { type ErrorAnswer, renderProblem } from './problem.js';

/**
 * A part of the service that speaks a protocol of its own, with its own form of errors. Whatever goes wrong below its
 * path is answered in that form: errors of handlers, a caller who is not known, a path that leads nowhere, a body that is
 * too large or no JSON.
 */
export interface Surface {
  /** All paths that begin with it belong to this surface; the longest one that fits counts. E.g. `/openai/v1`. */
  readonly prefix: string;
  /** @param path of the request, without its query; undefined when it could not be read */
  renderError(error: unknown, path: string | undefined): ErrorAnswer;
}

/** Problem documents (RFC 9457): the form of `/v1` and of all that belongs to no other surface. */
const NATIVE: Surface = { prefix: '', renderError: renderProblem };

declare module 'fastify' {
  interface FastifyInstance {
    surfaces: Surface[];
  }
}

/** Adds a surface to an application, before it listens: a feature does so in its module's `onModuleInit`. */
export function addSurface(app: INestApplicationContext, surface: Surface): void {
  const { httpAdapter } = app.get(HttpAdapterHost);
  const fastify = httpAdapter.getInstance<FastifyInstance>();
  fastify.surfaces.push(surface);
  fastify.surfaces.sort((a, b) => b.prefix.length - a.prefix.length);
}

/** The surface that a path belongs to. */
export const surfaceOf = (surfaces: readonly Surface[], path: string): Surface =>
  surfaces.find(({ prefix }) => path === prefix || path.startsWith(`${prefix}/`)) ?? NATIVE;
