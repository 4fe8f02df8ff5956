import { Type } from '@sinclair/typebox'

/** The settings of the Docker driver. */
export const docker = {
  DOCKER_HOST: Type.String({
    default: 'unix:///var/run/docker.sock',
    minLength: 1,
    description: 'address of dockerd: `unix:///path` or `tcp://host:port`',
    isSetByCompose: true,
  }),
  DOCKER_CERT_PATH: Type.Optional(
    Type.String({
      minLength: 1,
      description:
        'folder with `ca.pem`, `cert.pem` and `key.pem`, as of the docker command: `tcp://` is TLS with it; required ' +
        'for a dockerd on another machine',
      example: '/etc/chowder/docker',
      isSetByCompose: true,
    }),
  ),
  DOCKER_PUBLISH_ADDRESS: Type.String({
    default: '127.0.0.1',
    pattern: '^(none|(?!0\\.)(?:(?:25[0-5]|2[0-4]\\d|1?\\d?\\d)(?:\\.(?!$)|$)){4})$',
    rule: 'must be an IPv4 address of the host of dockerd, such as 10.1.0.5, or none',
    description:
      'address of the host of dockerd at which Chowder reaches gateways, with a dockerd on another machine one in a ' +
      'private network: see [another host](docker.md#agents-on-another-host); `none` where Chowder is itself in a ' +
      'container of the network `chowder-sandbox`, and reaches them there',
    isSetByCompose: true,
  }),
  DOCKER_BUILD_NETWORK: Type.String({
    default: 'default',
    minLength: 1,
    description: 'network for the build of agents’ images, as of `docker build --network`',
    isSetByCompose: true,
  }),
  DOCKER_NODE_IMAGE: Type.String({
    default: 'node:24-slim',
    pattern: '^[a-z0-9][A-Za-z0-9._/:@-]*$',
    rule: 'must be the name of an image, such as node:24-slim@sha256:…',
    description:
      'image of Node.js 24 on Debian that images are built on; with a digest the same one every time: ' +
      'see [pinned images](docker.md#pinned-images)',
    isSetByCompose: true,
  }),
  DOCKER_EXTRA_CA_FILE: Type.Optional(
    Type.String({
      minLength: 1,
      description: 'additional certificates in PEM that image builds and agents trust',
      isSetByCompose: true,
    }),
  ),
}
